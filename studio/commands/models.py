"""`studio models …` and `studio adapters …`"""

from __future__ import annotations

from typing import Annotated

import typer

from studio.commands.downloads import DownloadBar
from studio.commands.terminal import JsonFlag, group, open_studio, show, table

models = group("Base models: list, add, show, remove.")
adapters = group("Adapters: list, add, show, delete.")

MODEL_COLUMNS = ("name", "architecture", "parameters", "context", "loadable", "path")
CATALOGUE_COLUMNS = ("repository", "parameters", "context", "licence", "gated", "trains", "chats", "here", "reasons")
CACHED_COLUMNS = ("repository", "architecture", "parameters", "bytes", "here")
ADAPTER_COLUMNS = ("id", "name", "base_model", "method", "job", "bytes")
Name = Annotated[str | None, typer.Option(help="What to call it; its folder's name when left out.")]


@models.command("list")
def list_models(
    catalogue: Annotated[bool, typer.Option("--catalogue", help="Models that people use, whether or not they are here.")] = False,
    json: JsonFlag = False,
) -> None:
    """All base models; the starter is always there."""
    if catalogue:
        _list_catalogue(json)
        return
    rows = open_studio().models.list()
    show(rows, json, table(rows, MODEL_COLUMNS, ""))


def _list_catalogue(json: bool) -> None:
    rows = open_studio().known.list()
    lines = [{**row.model_dump(mode="json"), "reasons": " ".join(row.reasons)} for row in rows]
    show(rows, json, table(lines, CATALOGUE_COLUMNS, ""))


@models.command("cached")
def cached_models(json: JsonFlag = False) -> None:
    """Models of the hub that lie whole in your Hugging Face cache: `models add hub:NAME` uses them in place."""
    rows = open_studio().models.cached()
    show(rows, json, table(rows, CACHED_COLUMNS, "No whole model lies in the Hugging Face cache."))


@models.command("add")
def add_model(source: Annotated[str, typer.Argument(metavar="PATH|hub:NAME")], name: Name = None, json: JsonFlag = False) -> None:
    """Make a folder, or a model of the hub, usable by name."""
    added = open_studio().models.add(source, name, progress=DownloadBar())
    from studio.services.probes import described

    said = f"{added.name}: {added.architecture or added.reason}, {added.parameters:,} parameters."
    known = described(added.probe) if added.probe else []
    show(added, json, "\n".join((said, *added.notices, *known, *added.warnings)))


@models.command("show")
def show_model(model: Annotated[str, typer.Argument(metavar="MODEL")], json: JsonFlag = False) -> None:
    """One base model, and what it can do."""
    from studio.services.probes import described

    found = open_studio().models.show(model)
    if json or found.probe is None:
        show(found, json)
    else:
        facts = found.model_dump(mode="json", exclude={"probe"})
        show(found, json, "\n".join([*(f"{key}: {value}" for key, value in facts.items()), *described(found.probe)]))


@models.command("remove")
def remove_model(model: Annotated[str, typer.Argument(metavar="MODEL")], json: JsonFlag = False) -> None:
    """Forget a base model; files that lie outside STUDIO_HOME stay, as those in the Hugging Face cache do."""
    removed = open_studio().models.remove(model)
    kept = ""
    if removed.kept:
        kept = f" Its files stay in {removed.kept}."
    show(removed, json, f"{removed.name} is removed.{kept}")


@adapters.command("list")
def list_adapters(
    base_model: Annotated[str | None, typer.Option(help="Only those trained on this model.")] = None, json: JsonFlag = False
) -> None:
    """All adapters, newest first."""
    rows = open_studio().adapters.list(base_model)
    show(rows, json, table(rows, ADAPTER_COLUMNS, "No adapter yet. Train one with `studio train`."))


@adapters.command("add")
def add_adapter(
    path: Annotated[
        str, typer.Argument(metavar="PATH", help="A folder with adapter_config.json and adapter_model.safetensors, or a zip file of it.")
    ],
    name: Name = None,
    base_model: Annotated[str | None, typer.Option(help="The model it was trained on, where its config names none that is here.")] = None,
    json: JsonFlag = False,
) -> None:
    """Keep an adapter that was trained elsewhere."""
    added = open_studio().adapters.add(path, name, base_model=base_model)
    show(added, json, f"{added.name} ({added.method} on {added.base_model}). ID {added.id}")


@adapters.command("show")
def show_adapter(adapter: Annotated[str, typer.Argument(metavar="ID")], json: JsonFlag = False) -> None:
    """One adapter."""
    show(open_studio().adapters.show(adapter), json)


@adapters.command("delete")
def delete_adapter(adapter: Annotated[str, typer.Argument(metavar="ID")], json: JsonFlag = False) -> None:
    """Delete an adapter and its files."""
    show(open_studio().adapters.delete(adapter), json, f"{adapter} is deleted.")
