"""Every reader that is here asked about what was written. Knows no format's bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from jobs.exporters import gguf_reader, llama_cpp_reader, proof, reading
from jobs.exporters.config import ExportConfig, ProofPrompt
from jobs.exporters.gguf_reader import UnknownFamily
from jobs.exporters.proof import Reference
from studio.catalogue.gguf import INSTALL
from studio.datasets.rendering import Renderer
from studio.errors import message_of
from studio.records import ExportProof, Outtype, ReaderProof, RoundingProof

EIGHT_BITS = (
    "Only llama.cpp read this file of 8 bits, and it rounds what it computes to 8 bits too: that its logits are near was not asked, "
    "only that the tokens which the adapter is sure of are the same. The same export as f16 is proved to 5%."
)
Questions = Sequence[ProofPrompt]


def prove(config: ExportConfig, folder: Path, renderer: Renderer, reference: Reference, questions: Questions) -> ExportProof:
    """What every reader says of the export in `folder`; not proved where none can read it."""
    found: list[ExportProof] = []
    unread: list[str] = []
    try:
        found.append(_by_transformers(config, folder, renderer, reference, questions))
    except UnknownFamily as unknown:
        unread.append(unknown.message)
    if config.format in llama_cpp_reader.FORMATS:
        if llama_cpp_reader.is_here():
            found.append(by_llama_cpp(config, folder, renderer, reference, questions, llama_cpp_reader.max_share(config)))
        else:
            unread.append(f"llama.cpp is not here to read it. {INSTALL}.")
    if not found:
        return proof.unproved(len(reference.prompts), unread)
    verdict = proof.together(found)
    if config.outtype == Outtype.Q8_0 and verdict.reader == llama_cpp_reader.NAME:
        return verdict.model_copy(update={"notes": [EIGHT_BITS]})
    return verdict


def by_llama_cpp(
    config: ExportConfig, folder: Path, renderer: Renderer, reference: Reference, questions: Questions, max_share: float
) -> ExportProof:
    try:
        seen, same = llama_cpp_reader.observe(config, folder, renderer, reference.prompts, reference.behaviour.answers, questions)
    except ValueError as exc:  # its words for a file that it can't load
        reason = f"It does not load: {message_of(exc)}."
        return ExportProof(prompts=len(reference.prompts), passed=False, reason=reason, reader=llama_cpp_reader.NAME)
    return proof.judge(reference, seen, same, max_share, llama_cpp_reader.NAME)


def prove_rounded(
    config: ExportConfig,
    folder: Path,
    renderer: Renderer,
    reference: Reference,
    questions: Questions,
    sixteen: ExportProof,
    rounding: RoundingProof,
) -> ExportProof:
    """A K-quant: its 16-bit file behaves, its tensors are that file's, rounded, and llama.cpp answers with it.

    How far its logits are off is a figure, not a limit: so few bits move them by more than an adapter often does.
    """
    own = by_llama_cpp(config, folder, renderer, reference, questions, math.inf)
    fails = own.passed is False and (own.identical is None or not own.same_template_ids)
    reasons = [
        sixteen.reason and f"Before rounding: {sixteen.reason}",
        rounding.reason and f"Rounding: {rounding.reason}",
        own.reason if fails else "",
    ]
    return own.model_copy(
        update={
            "passed": bool(sixteen.passed and rounding.passed and not fails),
            "reason": " ".join(filter(None, reasons)),
            "readers": {f"{sixteen.reader}, f16": ReaderProof.model_validate(sixteen.model_dump())},
            "rounding": rounding,
        }
    )


def _by_transformers(config: ExportConfig, folder: Path, renderer: Renderer, reference: Reference, questions: Questions) -> ExportProof:
    model = reading.model(config, folder)
    seen = proof.observe(model, reference.prompts, renderer.stop_token_ids, reference.behaviour.answers)
    same = reading.same_ids(config, folder, renderer, questions)
    return proof.judge(reference, seen, same, reader=gguf_reader.NAME)
