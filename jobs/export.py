"""Write one export and prove it: `python -m jobs.export RUN_DIR`. Knows nothing of the UI, the queue or the database.

It writes beside the target, reads back what it wrote, and renames: the target is whole or absent. Exit codes as jobs.train.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.exporters.config import CALIBRATION, PROMPTS, PROOF, ExportConfig, ProofPrompt, check_space, expected_bytes, unfinished
from jobs.rundir import Attempt, RunDir, fsync_folder, move_into_place, write_json, write_manifest
from jobs.trainers.events import EventLog
from jobs.trainers.failures import explain
from jobs.trainers.stopping import StopWish
from studio import privacy
from studio.catalogue import rope
from studio.catalogue.models import count_parameters
from studio.datasets.rendering import Renderer
from studio.errors import StudioError
from studio.records import ExportFormat, ExportProof, WrittenExport
from studio.types import Example

STEPS = ("load the base and ask the adapter", "write", "read back and ask", "put into place")
UNPROVED = "unproved"  # cause of a failure: the file is there, and did not pass


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m jobs.export", description="Write and prove the export of a run directory.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--attempt", type=int, help="number of this attempt; the next one where it is left out")
    parser.add_argument("--watch-stdin", action="store_true", help="stop when stdin ends: whoever started this is gone")
    arguments = parser.parse_args(argv)
    faulthandler.enable()
    StopWish().listen(arguments.watch_stdin)  # there is nothing to keep: it leaves at once
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    run = RunDir(arguments.run_dir.absolute())
    return _attempt(run, run.attempt(arguments.attempt or run.next_attempt()))


def _attempt(run: RunDir, attempt: Attempt) -> int:
    log = EventLog(attempt.events)
    try:
        config = ExportConfig.model_validate(run.read_config())
        result = export(run, config, log)
    except BaseException as exc:  # noqa: BLE001 - the edge of the process: record and leave
        failure = explain(exc)
        with contextlib.suppress(OSError):
            write_json(attempt.result, {"status": "failed", **failure.as_json()})
        traceback.print_exception(exc)
        print(f"{failure.reason} {failure.fix}", file=sys.stderr, flush=True)
        return 1
    finally:
        log.close()
    metrics = result.as_json()
    if result.verified.passed is not False:  # what no reader here knows is written, and says that it is not proved
        write_json(attempt.result, {"status": "succeeded", "metrics": metrics})
        return 0
    reason = f"The export is written, and its proof failed: {result.verified.reason}"
    fix = f"Look at {result.path} before you use it; another format or a longer training may pass."
    write_json(attempt.result, {"status": "failed", "reason": reason, "fix": fix, "cause": UNPROVED, "remedy": {}, "metrics": metrics})
    print(f"{reason} {fix}", file=sys.stderr, flush=True)
    return 1


def export(run: RunDir, config: ExportConfig, log: EventLog) -> WrittenExport:
    """Write, prove, and move into place. Raises StudioError."""
    to = Path(config.to)
    if to.is_dir() and any(to.iterdir()) and not (to / PROOF).is_file():  # something else has come to lie there since the launch
        raise StudioError(f"{to} holds other files.", "Export again to a new or an empty folder.")
    folder = unfinished(to, run)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _check_space(config, folder.parent)
        folder.mkdir(parents=True)
        verified = _write_and_prove(run, config, folder, log)
        _tell(log, 4)
        write_manifest(folder)
        privacy.hand_out(folder)
        move_into_place(folder, to)
        fsync_folder(to.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    files = sorted(file.name for file in to.iterdir() if file.is_file())
    size = sum((to / name).stat().st_size for name in files)
    return WrittenExport(path=str(to), bytes=size, format=config.format, files=files, verified=verified)


def _write_and_prove(run: RunDir, config: ExportConfig, folder: Path, log: EventLog) -> ExportProof:
    from jobs.exporters import cards, gguf_rounding, reading, rounding, verification

    _tell(log, 1)
    base = Path(config.base_path)
    template = Path(config.adapter_path) / "chat_template.jinja"
    renderer = Renderer.load(base, str(template) if template.is_file() else None)
    questions = [ProofPrompt.model_validate_json(line) for line in _lines(run.path / PROMPTS)]
    made = write(config, folder, renderer, questions, log, _calibration(run, config, renderer))
    gc.collect()
    _tell(log, 3)
    verified = verification.prove(config.written, folder, renderer, made.reference, questions)
    if config.format == ExportFormat.MERGED:
        source = rounding.MergeSource(base, Path(config.adapter_path))
        verified = rounding.explained(verified, source, lambda: reading.model(config, folder), made.reference)
    notes = [*made.notes, *verified.notes]
    if config.is_rounded:
        sixteen = folder / config.written.file_name
        gguf_rounding.quantize(sixteen, folder / config.file_name, config.outtype, made.importance)
        rounded = gguf_rounding.compare(sixteen, folder / config.file_name, made.importance)
        notes += gguf_rounding.fallbacks(rounded, config.outtype)
        sixteen.unlink()
        verified = verification.prove_rounded(config, folder, renderer, made.reference, questions, verified, rounded)
    verified = verified.model_copy(update={"notes": notes})
    sentence = cards.proof_sentence(verified)
    for said in [f"Proof {sentence[0].lower()}{sentence[1:]}", *notes]:
        log.notice(said)
    cards.write(folder, config, verified)
    return verified


@dataclass(frozen=True)
class Made:
    """What was written, and what it must match."""

    reference: Any  # proof.Reference
    importance: dict[str, Any]  # of the inputs of every layer, for a K-quant
    notes: list[str]  # what the file leaves out, or a reader does otherwise


def write(
    config: ExportConfig,
    folder: Path,
    renderer: Renderer,
    questions: Sequence[ProofPrompt],
    log: EventLog,
    calibration: Sequence[Sequence[int]] = (),
) -> Made:
    """Ask the adapter on a fresh base, then write the export into `folder`: of a K-quant its 16-bit file."""
    from jobs.exporters import cards, folders, gguf_file, gguf_lora, models, proof, reading

    base, adapter = Path(config.base_path), Path(config.adapter_path)
    limit = models.context(base, rope.of_adapter(adapter)) - proof.NEW_TOKENS
    model = models.load_adapted(base, adapter)
    prompts = [reading.ids(renderer, question)[-limit:] for question in questions]
    reference = proof.refer(model, models.detached(model), prompts, renderer.stop_token_ids)
    _tell(log, 2)
    if config.format == ExportFormat.ADAPTER:
        folders.write_adapter(folder, adapter, renderer, config.base_model)
        return Made(reference, {}, [])
    if config.format == ExportFormat.GGUF_LORA:
        gguf_lora.write(folder / config.file_name, model, base, config.adapter)
        return Made(reference, {}, [])
    merged = models.merge(model)
    if config.format == ExportFormat.MERGED:
        folders.write_merged(folder, merged, base, renderer, models.half(base), config.adapter)
        return Made(reference, {}, [])
    importance, notes = _importance(config, merged, base, calibration)
    written = config.written
    notes = gguf_file.write(folder / written.file_name, merged, base, renderer, written.outtype, config.adapter) + notes
    cards.write_modelfile(folder / cards.MODELFILE, config.file_name, renderer)
    return Made(reference, importance, notes)


def _importance(config: ExportConfig, merged: Any, base: Path, rows: Sequence[Sequence[int]]) -> tuple[dict[str, Any], list[str]]:
    """The importance matrix of a K-quant, and what is to be said of it."""
    from jobs.exporters import importance
    from jobs.exporters.gguf_tensors import text_config
    from studio.catalogue import gguf

    if not config.is_rounded or not config.importance:
        return {}, []
    if not rows:
        return {}, [f"{config.outtype} was rounded without an importance matrix: the rows that the adapter was trained on are not here."]
    return importance.collect(merged, gguf.check(base), text_config(merged), rows), []


def _calibration(run: RunDir, config: ExportConfig, renderer: Renderer) -> list[list[int]]:
    """The training rows as ids, for a K-quant; [] where they are not known."""
    if not config.is_rounded or not config.importance:
        return []
    return [list(renderer.example(Example.model_validate_json(line)).ids) for line in _lines(run.path / CALIBRATION)]


def _lines(file: Path) -> list[str]:
    """One JSON object each: a text may hold other characters that end a line for Python."""
    if not file.is_file():
        return []
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line]


def _check_space(config: ExportConfig, place: Path) -> None:
    existing = next(path for path in (place, *place.parents) if path.is_dir())
    adapter_bytes = sum(file.stat().st_size for file in Path(config.adapter_path).glob("*.safetensors"))
    needed = expected_bytes(config.format, config.outtype, count_parameters(Path(config.base_path)), adapter_bytes)
    check_space(needed, existing)


def _tell(log: EventLog, step: int) -> None:
    print(f"{step}/{len(STEPS)} {STEPS[step - 1]}", flush=True)
    log.write("progress", step=step, max_steps=len(STEPS))


if __name__ == "__main__":
    sys.exit(main())
