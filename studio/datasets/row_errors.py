"""Why one row can't be used."""

from __future__ import annotations


class RowError(ValueError):
    """Why one row can't be mapped, and what would help."""

    def __init__(self, problem: str, fix: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.fix = fix
