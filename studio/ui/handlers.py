"""What surrounds every handler of the page. A StudioError becomes a notice, anything else is logged; no traceback is shown.

Handlers return a dict of component -> value, or gr.skip().
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.ui import pieces

log = logging.getLogger(__name__)
Handler = Callable[..., Any]
# At every event the page searches all its components for each one that shows progress. Without a list these would be all
# outputs, which took 70 ms of each first token.
NOWHERE: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": []}
QUIET: dict[str, Any] = {"queue": False, "api_visibility": "private", **NOWHERE}  # for timers and small moves
# for what is drawn from a choice: one that is made while the drawing before it is on its way is drawn after it, not lost
LATEST: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}


def busy(*shown_on: gr.HTML) -> dict[str, Any]:
    """Options of an event that a person waits for; something moves on the panels `shown_on` meanwhile."""
    waiting = NOWHERE
    if shown_on:
        waiting = {"show_progress": "minimal", "show_progress_on": list(shown_on)}
    return {"api_visibility": "private", "concurrency_limit": None, **waiting}


def tells(notice: gr.HTML) -> Callable[[Handler], Handler]:
    """Decorate a handler: its errors are shown in `notice`, which must be among its outputs; success clears it."""

    def decorate(handler: Handler) -> Handler:
        if inspect.isgeneratorfunction(handler):
            return _streaming(handler, notice)
        return _calling(handler, notice)

    return decorate


def steady(handler: Handler) -> Handler:
    """Decorate a refresh that is repeated or follows a click elsewhere: where it fails, the page stays as it is."""

    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return handler(*args, **kwargs)
        except StudioError:  # a row that was deleted meanwhile; the next refresh shows that
            return gr.skip()

    return call


def _calling(handler: Handler, notice: gr.HTML) -> Handler:
    @functools.wraps(handler)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            outcome = handler(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001  the edge between the page and the services
            return {notice: message(exc)}
        if isinstance(outcome, dict):
            return {notice: "", **outcome}
        return outcome

    return call


def _streaming(handler: Handler, notice: gr.HTML) -> Handler:
    # a wrapper that is itself a generator function, or gradio would show the generator object
    @functools.wraps(handler)
    def stream(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from handler(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001  the edge between the page and the services
            yield {notice: message(exc)}

    return stream


def message(error: Exception) -> str:
    """The notice for `error`. Anything but a StudioError is our own defect: logged in full, shown as one line."""
    if isinstance(error, StudioError):
        return pieces.notice(error)
    log.error("A handler of the page failed.", exc_info=error)
    return pieces.said(
        "This did not work because of a defect in the studio.",
        "bad",
        f"See the log ({type(error).__name__}). Your data is safe.",
    )
