"""`studio COMMAND …`: the program's edge. Commands are in studio.commands; here errors become one line and an exit code.

0 done; 1 something must be changed; 2 unknown command or option; 3 the job ended FAILED or CANCELLED.
"""

from __future__ import annotations

import contextlib
import json as json_library
import sys
import traceback
from dataclasses import replace
from typing import Annotated

import typer

from studio import __version__, privacy, terminals
from studio.commands import (
    access,
    asking,
    backups,
    compress,
    data,
    doctoring,
    exports,
    fit,
    jobs,
    judging,
    methods,
    models,
    scoring,
    voting,
)
from studio.commands.terminal import JsonFlag, group, load_settings, say, show
from studio.errors import StudioError, of_this_machine

ABOUT = "Adapter Studio: bring data, fine-tune open language models with QLoRA, chat, compare."
app = group(ABOUT)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"studio {__version__}")
        raise typer.Exit


@app.callback(help=ABOUT)
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end."),
    ] = False,
) -> None:
    """Options of the whole program."""


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 is this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = None,
) -> None:
    """Run the studio: page, engine and workers. Ctrl-C ends it."""
    from studio import supervisor

    settings = load_settings()
    settings = replace(settings, host=host or settings.host, port=settings.port if port is None else port)
    supervisor.up(settings, lambda line: print(line, flush=True))


@app.command()
def demo(json: JsonFlag = False) -> None:
    """The whole loop in minutes: data, training, chat, comparison."""
    from studio.commands.demo import run, text

    result = run(load_settings(), say)
    show(result, json, text(result))


app.command()(doctoring.doctor)
app.add_typer(data.app, name="data")
app.add_typer(models.models, name="models")
app.command()(fit.fit)
app.command(cls=jobs.TrainCommand)(jobs.train)
app.command()(jobs.sweep)
app.command()(methods.methods)
app.add_typer(jobs.app, name="jobs")
models.adapters.command("merge")(exports.merge)
app.add_typer(models.adapters, name="adapters")
app.command()(exports.export)
app.command()(asking.chat)
app.command()(asking.compare)
app.command()(judging.judge)
app.command()(scoring.leaderboard)
app.command()(scoring.agreement)
app.command()(scoring.metrics)
app.command()(judging.preferences)
app.command()(voting.ballot)
app.command()(voting.vote)
app.command()(voting.worst)
app.command()(voting.correct)
app.command()(compress.compress)
app.add_typer(access.keys, name="keys")
app.add_typer(access.sessions, name="sessions")
app.command()(backups.backup)
app.command()(backups.restore)


def main() -> None:
    privacy.keep_private()
    terminals.guard()
    try:
        app()
    except StudioError as error:
        _fail(error)
    except Exception as exc:  # noqa: BLE001 - the edge of the process: nobody sees a traceback
        _fail(of_this_machine(exc) or _defect(exc))


def _fail(error: StudioError) -> None:
    if "--json" in sys.argv:
        print(terminals.escaped(json_library.dumps({"error": error.as_json()}, ensure_ascii=False, default=str)))
    print(" ".join(str(error).split()), file=sys.stderr)
    sys.exit(1)


def _defect(exc: Exception) -> StudioError:
    """One line for what nobody foresaw; the whole of it goes to a file."""
    said, fix = f"This did not work because of a defect in the studio ({type(exc).__name__}: {exc}).", ""
    with contextlib.suppress(OSError, StudioError):
        log = load_settings().logs / "cli.log"
        log.write_text("".join(traceback.format_exception(exc)), encoding="utf-8")
        fix = f"{log} says more."
    return StudioError(said, fix)


if __name__ == "__main__":
    main()
