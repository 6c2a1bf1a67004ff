"""ExportConfig: what one export shall write and where. The contract between the service that queues it and its process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from jobs.rundir import RunDir
from studio.errors import StudioError
from studio.records import K_QUANTS, ExportFormat, Outtype
from studio.types import Message

PROMPTS = "prompts.jsonl"  # in the run directory: what the proof asks, one ProofPrompt on each line
CALIBRATION = "calibration.jsonl"  # there too, where they are known: training rows for the importance matrix of a K-quant
CALIBRATION_ROWS = 128
PROOF = "proof.json"  # in an export
MAX_PROMPTS = 500
BYTES_PER_WEIGHT = {
    Outtype.F16: 2.0,
    Outtype.BF16: 2.0,
    Outtype.Q8_0: 34 / 32,
    Outtype.Q6_K: 210 / 256,
    Outtype.Q5_K_M: 0.72,  # a mixture of types
    Outtype.Q4_K_M: 0.62,
}
HALF_BYTES = 2.0  # per weight in 16 bit
ROOM = 1.1  # of the expected size: headers, tokenizer, card
SPARE_BYTES = 50_000_000  # left on the disk


class ProofPrompt(BaseModel):
    """What the proof asks: a conversation to be answered, or a text to be continued."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: list[Message] | None = None
    text: str | None = None


class ExportConfig(BaseModel):
    """One export; paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    adapter: str = Field(description="Name, for people and cards.")
    adapter_path: str
    base_model: str
    base_path: str
    format: ExportFormat
    outtype: Outtype = Outtype.F16
    to: str = Field(description="The folder that the export becomes; absent until it is whole.")
    verify: int = Field(default=8, ge=1, le=MAX_PROMPTS, description="Prompts of the proof.")
    importance: bool = Field(default=True, description="Round a K-quant with an importance matrix from the training rows.")
    about: dict[str, Any] = Field(default_factory=dict, description="What the card says of the data and the run.")

    @property
    def file_name(self) -> str:
        """Of the GGUF file."""
        if self.format == ExportFormat.GGUF_LORA:
            return f"{self.adapter}-lora.gguf"
        return f"{self.adapter}-{self.outtype}.gguf"

    @property
    def is_rounded(self) -> bool:
        """Whether llama.cpp's quantizer makes the file, out of one of 16 bits."""
        return self.format == ExportFormat.GGUF and self.outtype in K_QUANTS

    @property
    def written(self) -> ExportConfig:
        """What the studio itself writes for this export: itself, or the 16-bit file that a K-quant is rounded from."""
        return self.model_copy(update={"outtype": Outtype.F16}) if self.is_rounded else self


def expected_bytes(format: ExportFormat, outtype: Outtype, parameters: int, adapter_bytes: int) -> int:
    """About how much room an export takes while it is written."""
    weights = parameters * HALF_BYTES
    if format in (ExportFormat.ADAPTER, ExportFormat.GGUF_LORA):
        weights = 2.0 * adapter_bytes  # 16-bit factors become 32-bit ones in GGUF
    elif format == ExportFormat.GGUF:
        weights = parameters * BYTES_PER_WEIGHT[outtype]
        if outtype in K_QUANTS:  # beside the 16-bit file that they are made from
            weights += parameters * HALF_BYTES
    return int(weights * ROOM)


def check_space(needed: int, place: Path) -> None:
    """Raises StudioError where the disk of `place` has not that much room."""
    free = shutil.disk_usage(place).free
    if needed + SPARE_BYTES > free:
        raise StudioError(
            f"The export takes about {needed / 1e6:,.0f} MB, and {place} has {free / 1e6:,.0f} MB free.",
            "Free some space, or write to another disk with --to.",
        )


def unfinished(to: Path, run: RunDir) -> Path:
    """Where an export grows: beside its target, on the same disk. Whoever ends the process removes it."""
    return to.with_name(f".{to.name}.{run.path.name}.part")
