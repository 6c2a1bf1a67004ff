"""Who sends an event of the page."""

from __future__ import annotations

import gradio as gr

from studio.records import Caller


def caller_of(request: gr.Request) -> Caller:
    """As studio.auth has found out; whoever runs the studio where the page is called without it, in tests."""
    found = None
    if request.request is not None:
        found = getattr(request.request.state, "caller", None)
    return found or Caller()
