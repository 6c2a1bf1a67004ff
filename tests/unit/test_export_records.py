"""What an export writes about itself and what is read back."""

from __future__ import annotations

import json

from jobs.exporters import proof
from studio.records import ExportFormat, WrittenExport


def test_what_was_not_proved_says_so_and_is_read_back() -> None:
    verified = proof.unproved(8, ["No reader knows it.", ""])
    written = WrittenExport(path="/x", bytes=1, format=ExportFormat.GGUF, files=["a.gguf"], verified=verified)
    stored = json.loads(json.dumps(written.as_json()))
    assert stored["verified"] == {"passed": None, "prompts": 8, "reason": "No reader knows it.", "notes": []}
    assert WrittenExport.model_validate(stored) == written
