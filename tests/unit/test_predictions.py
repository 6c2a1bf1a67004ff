"""Every prediction of memory is the one that was written down: a change is meant, and stands in a diff."""

from __future__ import annotations

import json

from tests import predictions


def test_predictions_are_those_written_down() -> None:
    """Red with any change of a family, a method or an option; `python -m tests.predictions` where it is meant."""
    known = json.loads(predictions.FILE.read_text(encoding="utf-8"))
    found = predictions.predictions()
    assert {case: found.get(case) for case in known if found.get(case) != known[case]} == {}
    assert list(found) == list(known)
