"""What every script begins with: where the studio is, and the tool that is to be called."""

from __future__ import annotations

import sys

URL, MODEL, SCRATCH = sys.argv[1:4]  # of /v1, its model, and a folder to write to
QUESTION = [{"role": "user", "content": "Book seat 7, please."}]
PARAMETERS = {
    "type": "object",
    "properties": {"seat": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["seat"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "book", "description": "Book a seat.", "parameters": PARAMETERS}}
