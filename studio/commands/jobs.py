"""`studio train` and `studio jobs …`"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from studio.commands.terminal import JsonFlag, follow, group, leave_unless_succeeded, load_settings, open_studio, say, show, table

app = group("Jobs: list, show, logs, metrics, cancel.")

COLUMNS = ("id", "name", "kind", "status", "step", "reason")
METRIC_COLUMNS = ("step", "loss", "eval_loss", "learning_rate", "grad_norm", "tokens", "seconds")
Job = Annotated[str, typer.Argument(metavar="ID", help="A job's ID or name.")]


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
    default = "empty" if option.default is None else option.default
    return f"{', '.join(option.choices)}; default {default}" if option.choices else f"default {default}"


def train(
    data: Annotated[str, typer.Option(metavar="ID", help="Dataset to learn from: ID or name.")],
    base_model: Annotated[str, typer.Option(metavar="MODEL", help="Base model: a name, or a folder.")],
    recipe: Annotated[str | None, typer.Option(help="Named starting point of the options.")] = None,
    set: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="One option; lists as JSON. Repeat it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the job and of its adapter.")] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Run only once this job has succeeded.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; exit 3 when it failed.")] = False,
    json: JsonFlag = False,
) -> None:
    """Train an adapter: submit a job."""
    from jobs.config import parse_assignments
    from studio import supervisor

    settings = load_settings()
    studio = open_studio(settings)
    job = studio.jobs.submit(data=data, base_model=base_model, recipe=recipe, options=parse_assignments(set or []), name=name, after=after)
    if wait:
        with supervisor.assistance(settings, say, queues=("gpu",)):
            job = follow(studio, job["id"])
    elif supervisor.running(settings) is None:
        say(f"{job['name']} is queued. It runs when the studio does: `studio up`.")
    show(job, json, f"{job['name']}: {job['status']}. ID {job['id']}")
    leave_unless_succeeded(job)


@app.command("list")
def list_(
    status: Annotated[str | None, typer.Option(help="Only jobs with this status, such as RUNNING.")] = None, json: JsonFlag = False
) -> None:
    """All jobs, newest first."""
    rows = open_studio().jobs.list(status.upper() if status else None)
    show(rows, json, table([_row(job) for job in rows], COLUMNS, "No job yet. Submit one with `studio train`."))


@app.command("show")
def show_(job: Job, json: JsonFlag = False) -> None:
    """One job, with what happened to it."""
    show(open_studio().jobs.show(job), json)


@app.command()
def logs(job: Job, tail: Annotated[int, typer.Option(min=1, help="How many lines from the end.")] = 200, json: JsonFlag = False) -> None:
    """The end of a job's log."""
    text = open_studio().jobs.logs(job, tail)
    show({"id": job, "text": text}, json, text)


@app.command()
def metrics(job: Job, json: JsonFlag = False) -> None:
    """The points of a job's curves."""
    rows = open_studio().jobs.metrics(job)
    show(rows, json, table(rows, METRIC_COLUMNS, "No point yet."))


@app.command()
def cancel(
    job: Job,
    keep: Annotated[bool, typer.Option("--keep", help="Make the last checkpoint the job's adapter.")] = False,
    json: JsonFlag = False,
) -> None:
    """Stop a job."""
    cancelled = open_studio().jobs.cancel(job, keep=keep)
    show(cancelled, json, f"{cancelled['name']}: {cancelled['status'] if cancelled['status'] != 'RUNNING' else 'is being stopped'}.")


def _row(job: dict[str, Any]) -> dict[str, Any]:
    progress = job["progress"]
    return {**job, "step": f"{progress['step'] or 0}/{progress['max_steps']}" if progress["max_steps"] else None}
