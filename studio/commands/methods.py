"""`studio methods`: what goes together, and what is refused because."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from studio.commands.terminal import JsonFlag, show, table

if TYPE_CHECKING:
    from studio.catalogue.compatibility import Cell

COLUMNS = ("method", "precision", "objective", "verdict", "because")


def methods(
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Where to train; auto takes what is here.")] = "auto",
    json: JsonFlag = False,
) -> None:
    """Every method with every precision of the base and every objective: ok, needs a change, or refused because."""
    from studio.catalogue import compatibility

    found = compatibility.methods(device)
    shown = [cell for cell in found.cells if not cell.gradient_checkpointing or cell.verdict is compatibility.CellVerdict.NEEDS]
    lines = table([_row(cell) for cell in shown], COLUMNS, "")
    others = "\n".join(f"Not offered: {one.name}, {one.because}." for one in found.left_out)
    show(asdict(found), json, f"{lines}\n\n{others}")


def _row(cell: Cell) -> dict[str, str]:
    method, because = cell.method, ""
    if cell.gradient_checkpointing:
        method += " + gradient_checkpointing"
    if cell.because:
        because = f"{cell.because}: {cell.fix}"
    return {
        "method": method,
        "precision": cell.precision,
        "objective": cell.objective,
        "verdict": cell.verdict,
        "because": because,
    }
