"""Numbers as people read them."""

from __future__ import annotations

import pytest

from studio.ui import words


@pytest.mark.parametrize(
    ("num_bytes", "said"),
    [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (8_480_000_000, "7.9 GiB"), (150 * 1024**3, "150 GiB"), (None, "unknown")],
)
def test_size(num_bytes: float | None, said: str) -> None:
    assert words.size(num_bytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.44, "0.4 s"), (59.6, "60 s"), (120, "2 min"), (3599, "1 h"), (4800, "1 h 20 min"), (3 * 86400, "3 days"), (None, "")],
)
def test_duration(seconds: float | None, said: str) -> None:
    assert words.duration(seconds) == said


@pytest.mark.parametrize(("past", "said"), [(3, "just now"), (70, "1 min ago"), (600, "10 min ago"), (-5, "just now")])
def test_ago(past: float, said: str) -> None:
    assert words.ago(1000.0, now=1000.0 + past) == said


@pytest.mark.parametrize(("part", "said"), [(0, "0 %"), (0.034, "3.4 %"), (0.999, "99 %"), (1, "100 %"), (0.5, "50 %"), (None, "")])
def test_share(part: float | None, said: str) -> None:
    assert words.share(part) == said


def test_counts_agree_with_their_noun() -> None:
    assert (words.count(1, "row"), words.count(1204, "row"), words.count(0, "row")) == ("1 row", "1,204 rows", "0 rows")


def test_how_long_a_job_that_runs_has_taken_so_far() -> None:
    assert words.elapsed(100.0, None, now=160.0) == "60 s"
    assert words.elapsed(None, None) == ""
