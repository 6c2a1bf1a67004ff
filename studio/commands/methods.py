"""`studio methods`: what goes together, and what is refused because."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer

from studio.commands.terminal import JsonFlag, show, table

COLUMNS = ("method", "precision", "objective", "verdict", "because")


def methods(
    device: Annotated[Literal["auto", "cuda", "cpu"], typer.Option(help="Where to train; auto takes what is here.")] = "auto",
    json: JsonFlag = False,
) -> None:
    """Every method with every precision of the base and every objective: ok, needs a change, or refused because."""
    from studio.catalogue import compatibility, hardware

    where = hardware.devices()[0].kind if device == "auto" else device
    cells = [asdict(cell) for cell in compatibility.table(where)]
    left_out = compatibility.left_out()
    lines = table([_row(cell) for cell in cells if not cell["gradient_checkpointing"] or cell["verdict"] == "needs"], COLUMNS, "")
    others = "\n".join(f"Not offered: {one['name']}, {one['because']}." for one in left_out)
    show({"device": where, "cells": cells, "left_out": left_out}, json, f"{lines}\n\n{others}")


def _row(cell: dict[str, Any]) -> dict[str, Any]:
    because = f"{cell['because']}: {cell['fix']}" if cell["because"] else ""
    return {**cell, "because": because, "method": cell["method"] + (" + gradient_checkpointing" if cell["gradient_checkpointing"] else "")}
