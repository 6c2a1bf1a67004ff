"""`studio export` and `studio adapters merge`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from studio.commands.terminal import JsonFlag, follow, leave_unless_succeeded, load_settings, open_studio, plain, say, show

if TYPE_CHECKING:
    from studio.records import Export, ExportProof


def export(
    adapter: Annotated[str, typer.Argument(metavar="ADAPTER", help="An adapter's ID or name.")],
    format: Annotated[
        str,
        typer.Option(metavar="F", help="adapter, merged (16 bit), gguf (llama.cpp, ollama) or gguf-lora (beside a base's)."),
    ],
    to: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder to write, or to hold it where it is not empty; else in STUDIO_HOME/exports."),
    ] = None,
    outtype: Annotated[
        str,
        typer.Option(metavar="T", help="Numbers of a gguf: f16, bf16, q8_0 of half the size; q6_k, q5_k_m, q4_k_m need llama.cpp."),
    ] = "f16",
    verify: Annotated[int, typer.Option(metavar="N", help="Prompts of the proof.")] = 8,
    importance: Annotated[
        bool, typer.Option("--importance/--no-importance", help="Round q6_k … q4_k_m by what matters on the training rows.")
    ] = True,
    push: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Upload it to the hub once it is proved; needs HF_TOKEN.")] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository of --push public.")] = False,
    json: JsonFlag = False,
) -> None:
    """Write an adapter in a form that others can use, and prove that it behaves like it."""
    from studio import supervisor
    from studio.records import JobStatus

    settings = load_settings()
    studio = open_studio(settings)
    if push is not None:
        studio.exports.check_push(push)
    made = studio.exports.create(adapter, format, outtype=outtype, to=to, verify=verify, importance=importance)
    try:
        with supervisor.assistance(settings, say, queues=("gpu",)):
            job = follow(studio, made.id)
    except KeyboardInterrupt:
        studio.jobs.cancel(made.id)  # it belongs to this command; nothing of it stays
        raise
    done = studio.exports.show(made.id)
    result, lines = plain(done), [_text(done)]
    if done.status == JobStatus.SUCCEEDED and push is not None:
        pushed = studio.exports.push(made.id, push, private=not public)
        result |= plain(pushed)
        lines.append(f"Uploaded to {pushed.url}.")
    if done.status != JobStatus.SUCCEEDED:
        result["error"] = {"message": done.reason, "fix": done.fix}
    show(result, json, "\n".join(lines))
    leave_unless_succeeded(job)


def merge(
    weights: Annotated[str, typer.Option(metavar="A=0.7,B=0.3", help="Adapters of one base, and how much of each.")],
    method: Annotated[str, typer.Option(metavar="M", help="linear adds the updates; ties and dare thin them out first.")] = "linear",
    name: Annotated[str | None, typer.Option(help="Name of the new adapter.")] = None,
    density: Annotated[float, typer.Option(help="Share of values that ties and dare keep.")] = 0.5,
    json: JsonFlag = False,
) -> None:
    """Make one adapter of several."""
    from studio.services.merging import parse

    made = open_studio().merging.merge(parse(weights), method, name, density=density)
    show(made, json, f"{made.name} ({method} of {weights}) on {made.base_model}. ID {made.id}")


def _text(done: Export) -> str:
    verified = done.verified
    if verified is None:
        return f"Nothing was written: {done.reason}"
    notes = "".join(f"\nNote: {note}" for note in verified.notes)
    return f"{done.path} ({done.bytes / 1e6:.1f} MB): {', '.join(done.files)}\n{_proof(verified)}{notes}"


def _proof(verified: ExportProof) -> str:
    if verified.passed is None:
        return f"Not proved: {verified.reason}"
    what = "passed" if verified.passed else f"FAILED ({verified.reason})"
    if verified.identical is None:
        return f"Proof {what}."
    rounded = f" Rounding moved its tensors by up to {verified.rounding.worst_error:.1%} of their size." if verified.rounding else ""
    limit = "" if verified.rounding else " (5% would fail)"
    return (
        f"Proof {what}: {verified.identical} of {verified.prompts} greedy answers are identical; logits differ by at most "
        f"{verified.max_logit_diff:.3g}, {verified.worst_share:.2%} of what the adapter changes{limit}.{rounded}"
    )
