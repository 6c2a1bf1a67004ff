"""`studio train`, `studio sweep` and `studio jobs …`"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from studio.commands.terminal import JsonFlag, follow, group, leave_unless_succeeded, open_studio, read_text, say, show, table

if TYPE_CHECKING:
    from studio.records import Job, JobComparison, JobDetail, Report
    from studio.services import Studio

app = group("Jobs: the queue, what runs, and what came of it.")

COLUMNS = ("id", "name", "kind", "status", "step", "starts", "tags", "reason")
METRIC_COLUMNS = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens", "seconds", "drift", "cores")
JobId = Annotated[str, typer.Argument(metavar="ID", help="A job's ID or name.")]
OrQueue = Annotated[str | None, typer.Argument(metavar="[ID]", help="A job's ID or name; the whole queue where it is left out.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One option; lists as JSON. Repeat it.")]
BundleFile = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A file that `studio jobs bundle` has written.")]
QUEUE_IS_PAUSED = "The queue is paused: nothing new starts until `studio jobs resume`."


class TrainCommand(TyperCommand):
    """`--help` ends with every option of a job, from where the options are declared."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        from jobs.config import options
        from jobs.recipes import DEFAULT_RECIPE, RECIPES

        with formatter.section(f"Recipes (--recipe NAME, default {DEFAULT_RECIPE})"):
            formatter.write_dl([(recipe.name, f"{recipe.goal}. {recipe.description}") for recipe in RECIPES.values()])
        with formatter.section("Options of a job (--set KEY=VALUE)"):
            formatter.write_dl([(option.key, f"{option.description} [{_values(option)}]") for option in options()])


def _values(option: Any) -> str:
    default = "default empty" if option.default is None else f"default {option.default}"
    return "; ".join([", ".join(option.choices), default] if option.choices else [default])


def train(
    data: Annotated[str, typer.Option(metavar="ID", help="Dataset to learn from: ID or name.")],
    base_model: Annotated[str, typer.Option(metavar="MODEL", help="Base model: a name, or a folder.")],
    recipe: Annotated[str | None, typer.Option(help="Named starting point of the options.")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="Options as YAML, as the Train tab writes them.")] = None,
    set: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the job and of its adapter.")] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Run only once this job has succeeded.")] = None,
    fit_memory: Annotated[
        bool, typer.Option("--fit-memory", help="Change batch, recomputing, optimizer or length so that it fits, as `studio fit` says.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; exit 3 when it failed.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train an adapter: submit a job."""
    from jobs.config import parse_assignments
    from jobs.recipes import from_yaml

    options = {**(from_yaml(read_text(config)) if config else {}), **parse_assignments(set or [])}
    studio = open_studio()
    launch = functools.partial(studio.jobs.submit, data=data, base_model=base_model, recipe=recipe, options=options)
    job = launch(name=name, after=after, fit_memory=fit_memory)
    _launched(studio, job, wait, json)


def sweep(
    data: Annotated[str, typer.Option(metavar="ID", help="Dataset to learn from: ID or name.")],
    base_model: Annotated[str, typer.Option(metavar="MODEL", help="Base model: a name, or a folder.")],
    grid: Annotated[list[str], typer.Option(metavar="KEY=[V, V]", help="An option and its values, as JSON. Repeat it.")],
    recipe: Annotated[str | None, typer.Option(help="Named starting point of the options.")] = None,
    set: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; its jobs take it with a number.")] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Run only once this job has succeeded.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until all have ended; exit 3 when one failed.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train once per combination of options: one job that stands for its children."""
    from jobs.config import parse_assignments

    studio = open_studio()
    options = parse_assignments(set or [])
    job = studio.jobs.sweep(
        data=data, base_model=base_model, grid=parse_assignments(grid), recipe=recipe, options=options, name=name, after=after
    )
    _launched(studio, job, wait, json)


def _launched(studio: Studio, job: JobDetail, wait: bool, json: bool) -> None:
    """Say what becomes of a job that was just queued, and see it through with `wait`."""
    from studio import supervisor

    if studio.jobs.overview().paused:
        say(QUEUE_IS_PAUSED)
    if wait:
        with supervisor.assistance(studio.settings, say, queues=("gpu",)):
            job = follow(studio, job.id)
    elif supervisor.running(studio.settings) is None:
        say(f"{job.name} is queued. It runs when the studio does: `studio up`.")
    show(job, json, _queued(job))
    leave_unless_succeeded(job)


def _queued(job: JobDetail) -> str:
    lines = [f"{job.name}: {job.status}. ID {job.id}"]
    lines += [f"Note: {text}" for event in job.events if event.kind == "notice" and (text := (event.model_extra or {}).get("text"))]
    return "\n".join(lines)


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option(help="Only jobs with this status, such as RUNNING.")] = None,
    search: Annotated[str | None, typer.Option(help="Only jobs in whose name, model, data, tags or note these words occur.")] = None,
    json: JsonFlag = False,
) -> None:
    """All jobs: what runs, what waits in its order, what has ended, newest first."""
    studio = open_studio()
    rows = studio.jobs.list(status, search)
    if studio.jobs.overview().paused:
        say(QUEUE_IS_PAUSED)
    show(rows, json, table([_row(job) for job in rows], COLUMNS, "No job yet. Submit one with `studio train`."))


@app.command("show")
def show_(job: JobId, json: JsonFlag = False) -> None:
    """One job, with what happened to it."""
    show(open_studio().jobs.show(job), json)


@app.command()
def logs(job: JobId, tail: Annotated[int, typer.Option(min=1, help="How many lines from the end.")] = 200, json: JsonFlag = False) -> None:
    """The end of a job's log."""
    text = open_studio().jobs.logs(job, tail)
    show({"id": job, "text": text}, json, text)


@app.command()
def metrics(job: JobId, json: JsonFlag = False) -> None:
    """The points of a job's curves."""
    rows = open_studio().jobs.metrics(job)
    show(rows, json, table(rows, METRIC_COLUMNS, "No point yet."))


@app.command()
def report(
    job: JobId,
    rows: Annotated[int | None, typer.Option(min=1, max=1000, help="Make it anew, of so many held-out rows.")] = None,
    json: JsonFlag = False,
) -> None:
    """Base against adapter on rows that the training never saw; made by itself after each training, finished here where it waits."""
    from studio import supervisor
    from studio.errors import NotFoundError
    from studio.records import PENDING

    studio = open_studio()
    try:
        found = studio.reports.show(job) if rows is None else studio.reports.make(job, rows)
    except NotFoundError:
        found = studio.reports.make(job)
    if found.status in PENDING:
        studio.reports.hurry(job)
        with supervisor.assistance(studio.settings, say, queues=("light",), engine=True):
            ended = follow(studio, found.job)
        found = studio.reports.show(job)
    else:
        ended = studio.jobs.show(found.job)
    show(found, json, _report_text(found))
    leave_unless_succeeded(ended)


def _report_text(found: Report) -> str:
    if found.metrics is None:
        return f"{found.status}: {found.reason} {found.fix}".strip()
    from studio.evaluation.metrics import Display, shown_on  # brings numpy: not for `studio --help`

    columns = ("name", *(metric.name for metric in shown_on(Display.REPORT)), "tokens", "seconds")
    rows = [{"name": name, **row} for name, row in found.metrics.items()]
    lines = [
        f"{found.rows} held-out rows, answered by {found.base} and {found.adapter}",
        table(rows, columns, "No answers."),
        *_verdict_lines(found),
    ]
    for title, examples in (("win", found.wins), ("loss", found.losses)):
        for row in examples or []:
            lines.append(f"{title}: {_line(row.prompt)}")
            texts = (("reference", row.reference), ("base", row.base), ("tuned", row.tuned))
            lines += [f"    {who}: {_line(text)}" for who, text in texts]
    return "\n".join(lines)


def _verdict_lines(found: Report) -> list[str]:
    judged, counts = found.judge, found.counts
    if judged is None or counts is None or judged.win_rate is None or judged.ci95 is None:
        return []
    low, high = judged.ci95
    verdict = (
        f"By the {judged.judge} judge {found.adapter} wins {judged.win_rate:.0%} ({low:.0%} to {high:.0%}): "
        f"{counts.wins} won, {counts.losses} lost, {counts.ties} equal."
    )
    return [verdict, *(f"  ! {warning}" for warning in judged.warnings)]


def _line(text: str) -> str:
    return " ".join(text.split())[:160] or "(nothing)"


@app.command()
def cancel(
    job: JobId,
    keep: Annotated[bool, typer.Option("--keep", help="Make the last checkpoint the job's adapter.")] = False,
    json: JsonFlag = False,
) -> None:
    """Stop a job."""
    cancelled = open_studio().jobs.cancel(job, keep=keep)
    show(cancelled, json, f"{cancelled.name}: {_moved(cancelled, 'is being stopped')}.")


def _moved(job: JobDetail, while_running: str) -> str:
    """Where a job stands after a person has asked something of it."""
    from studio.records import JobStatus

    return while_running if job.status == JobStatus.RUNNING else job.status


@app.command()
def pause(job: OrQueue = None, json: JsonFlag = False) -> None:
    """Set a job aside, a running one at a checkpoint; without an ID, start nothing new."""
    jobs = open_studio().jobs
    if job is None:
        show(jobs.pause_queue(), json, QUEUE_IS_PAUSED)
        return
    paused = jobs.pause(job)
    show(paused, json, f"{paused.name}: {_moved(paused, 'is being paused')}.")


@app.command()
def resume(job: OrQueue = None, json: JsonFlag = False) -> None:
    """Let a paused job go on where it stopped; without an ID, let the queue run again."""
    jobs = open_studio().jobs
    if job is None:
        show(jobs.resume_queue(), json, "The queue runs again.")
        return
    resumed = jobs.resume(job)
    show(resumed, json, f"{resumed.name}: {resumed.status}.")


@app.command()
def retry(
    job: JobId,
    fix: Annotated[bool, typer.Option("--fix", help="As a new job, with the change of options that its failure asks for.")] = False,
    json: JsonFlag = False,
) -> None:
    """Run a failed or cancelled job again, from its last checkpoint."""
    jobs = open_studio().jobs
    again = jobs.apply_remedy(job) if fix else jobs.retry(job)
    show(again, json, _queued(again))


@app.command()
def clone(
    job: JobId,
    set: Set = None,
    name: Annotated[str | None, typer.Option(help="Name of the new job and of its adapter.")] = None,
    json: JsonFlag = False,
) -> None:
    """Queue another job with the same data and options, some of them changed."""
    from jobs.config import parse_assignments

    made = open_studio().jobs.clone(job, options=parse_assignments(set or []), name=name)
    show(made, json, _queued(made))


@app.command()
def move(
    job: JobId,
    priority: Annotated[int | None, typer.Option(min=-1000, max=1000, help="Higher runs first; 0 is usual.")] = None,
    before: Annotated[str | None, typer.Option(metavar="JOB", help="Run it right before this one.")] = None,
    json: JsonFlag = False,
) -> None:
    """Change the place of a waiting job."""
    moved = open_studio().jobs.move(job, priority, before)
    show(moved, json, f"{moved.name}: priority {moved.priority}.")


@app.command()
def tag(
    job: JobId,
    tags: Annotated[list[str] | None, typer.Argument(metavar="TAG...")] = None,
    remove: Annotated[list[str] | None, typer.Option(metavar="TAG", help="Take this tag off. Repeat it.")] = None,
    json: JsonFlag = False,
) -> None:
    """Add tags to a job."""
    tagged = open_studio().jobs.tag(job, tags or [], remove or [])
    show(tagged, json, f"{tagged.name}: {', '.join(tagged.tags) or 'no tags'}.")


@app.command()
def note(job: JobId, text: Annotated[str, typer.Argument(help="The note; empty removes it.")], json: JsonFlag = False) -> None:
    """Write a note on a job."""
    noted = open_studio().jobs.note(job, text)
    show(noted, json, f"{noted.name}: {noted.notes or 'no note'}")


@app.command()
def compare(jobs: Annotated[list[str], typer.Argument(metavar="ID ID...")], json: JsonFlag = False) -> None:
    """Runs beside each other: what differs in their options, and what they reached."""
    found = open_studio().jobs.compare(jobs)
    show(found, json, _comparison_text(found))


def _comparison_text(found: JobComparison) -> str:
    ids = [job.id for job in found.jobs]
    rows = [_across(ids, "", [job.name for job in found.jobs])]
    rows += [_across(ids, key, values) for key, values in found.differences.items()]
    figures = dict.fromkeys(key for result in found.results.values() for key in result)
    rows += [_across(ids, key, [found.results[job_id].get(key) for job_id in ids]) for key in figures]
    if any(found.judged.values()):
        verdicts = [found.judged[job_id] for job_id in ids]
        rows.append(_across(ids, "win_rate", [verdict and verdict.win_rate for verdict in verdicts]))
    return table(rows, ["", *ids], "")


def _across(ids: Sequence[str], title: str, values: Sequence[object]) -> dict[str, object]:
    """A row of the comparison: its title, then one value per job."""
    return {"": title, **dict(zip(ids, values, strict=True))}


@app.command()
def script(
    job: JobId, to: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it to a file.")] = None, json: JsonFlag = False
) -> None:
    """The training as a TRL script with the same settings, rows and order of rows."""
    made = open_studio().jobs.script(job, to)
    if to is None:
        say("The rows that it reads are written with --to FILE, beside the script.")
        show(made, json, made.script)
    else:
        show(made, json, f"The script is in {to}; beside it lie {', '.join(made.files)}.")


@app.command()
def bundle(job: JobId, to: Annotated[Path, typer.Option(metavar="FILE", help="The .zip file to write.")], json: JsonFlag = False) -> None:
    """Everything of a run in one file: options, rows, template, versions, figures, adapter."""
    made = open_studio().bundles.bundle(job, to)
    show(made, json, f"{made.name} is in {made.path} ({made.bytes / 1e6:.1f} MB).")


@app.command()
def rerun(
    bundle: BundleFile,
    name: Annotated[str | None, typer.Option(help="Name of the new job and of its adapter.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; exit 3 when it failed.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train a bundle's run again."""
    studio = open_studio()
    _launched(studio, studio.bundles.rerun(bundle, name), wait, json)


@app.command()
def verify(bundle: BundleFile, json: JsonFlag = False) -> None:
    """Train a bundle's run again, unless that is done, and say whether the same adapter comes out."""
    from studio import supervisor
    from studio.records import ENDED

    studio = open_studio()
    found = studio.bundles.verify(bundle)
    if found.status not in ENDED:
        with supervisor.assistance(studio.settings, say, queues=("gpu",)):
            follow(studio, found.job)
        found = studio.bundles.verify(bundle)
    if found.reproduces:
        show(found, json, f"The same adapter, to the bit ({found.actual}).")
        return
    if found.reproduces is None:
        show(found, json, f"{found.name}: {found.status}. {found.reason} {found.fix}")
        raise typer.Exit(3)
    message = f"Another adapter comes out: {found.actual} instead of {found.expected}."
    fix = "Versions, device and threads are the same; look at the log of both runs."
    if found.environment_differences:
        pairs = (f"{key} {there} there, {here} here" for key, (there, here) in found.environment_differences.items())
        fix = f"What differs: {', '.join(pairs)}."
    show({**dict(found), "error": {"message": message, "fix": fix}}, json, "It does not reproduce.")
    say(f"{message} {fix}")
    raise typer.Exit(1)


def _row(job: Job) -> dict[str, object]:
    progress, step, starts = job.progress, None, None
    if progress.max_steps:
        step = f"{progress.step or 0}/{progress.max_steps}"
    if job.starts_in_s is not None:
        starts = f"in {job.starts_in_s:.0f} s"
    return {**dict(job), "step": step, "starts": starts, "tags": ", ".join(job.tags) or None}
