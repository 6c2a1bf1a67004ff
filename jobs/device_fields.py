"""Options of a job that say where and how it is computed, and how often it is kept; jobs.config lists them among the others."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

SeedOption = Annotated[
    int,
    Field(
        ge=0,
        le=2**31 - 1,
        description="On a processor the same seed gives the same adapter, byte for byte, with the same versions and number of threads; on a "
        "GPU the same but for rounding, and byte for byte on the same card with full_determinism.",
    ),
]
FullDeterminismOption = Annotated[
    bool,
    Field(
        title="Deterministic algorithms",
        description="On a GPU take only code that gives the same bytes each time: slower, by how much depends on card and model. A processor "
        "does so anyway.",
    ),
]
DeviceOption = Annotated[Literal["auto", "cuda", "cpu"], Field(description="Where to train: auto takes the GPU when there is one.")]
DtypeOption = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    Field(
        title="Number format",
        description="Number format of the arithmetic: auto takes bfloat16 where the device computes in it, else float16 on a GPU and "
        "float32 on a processor; float32 is steadiest, slower, and takes more memory.",
    ),
]
SaveStepsOption = Annotated[
    int | None,
    Field(
        title="Steps between checkpoints",
        ge=1,
        description="Steps between two checkpoints; empty chooses about ten per run. Another is made wherever ten minutes have passed.",
    ),
]
NumThreadsOption = Annotated[
    int,
    Field(title="CPU threads", ge=0, le=1024, description="CPU threads of the trainer; 0 leaves room for the page and the engine."),
]
