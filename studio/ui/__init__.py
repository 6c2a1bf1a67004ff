"""The page: one Blocks, a strip, and a tab for each step of the loop. `build` makes it; studio.web mounts it.

Knows nothing of HTTP, torch or tables: every handler is a call of a service and a return.
"""

from __future__ import annotations

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by gradio while it is imported

from studio.ui.blocks import build
from studio.ui.theme import launch_options

__all__ = ["build", "launch_options"]
