"""Base models by name: the starter that is always there, folders that were added, models from the hub. Loads none of them."""

from __future__ import annotations

import builtins
from functools import lru_cache
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from studio.catalogue import probes
from studio.catalogue.models import ModelFacts, ModelRef, inspect_folder, read_json, unused_weights
from studio.catalogue.wrappers import ignored_code, text_model
from studio.datasets.rendering import names_file
from studio.db.models import AdapterRow, BaseModelRow, JobRow
from studio.db.session import Database
from studio.errors import ModelError, NotFoundError, StudioError, plain
from studio.records import UNENDED, BaseModel, CachedModel, Probe, RemovedModel
from studio.services import hub_models, naming
from studio.services.folders import delete_inside
from studio.services.paging import ALL, Listed, Page
from studio.services.vocabularies import check_vocabulary
from studio.settings import STATIC, Settings

STARTER = "starter"
STARTER_FOLDER = STATIC / "starter"
HUB = "hub:"
MOST_CONTEXT = 10**9  # tokens
PUBLISHED = "Use the config.json that was published with the model."


class ModelService:
    """What a person can do with base models. `at_terminal`: folders are accepted where a name is asked for."""

    def __init__(self, settings: Settings, db: Database, *, at_terminal: bool = False) -> None:
        self.settings = settings
        self.db = db
        self.at_terminal = at_terminal

    def refuse_file(self, chat_template: object) -> None:
        """A template is chosen by its file at a terminal only: what lies on this machine is its owner's business."""
        if not self.at_terminal and isinstance(chat_template, str) and names_file(chat_template):
            raise StudioError(
                "Here a template is a name or its own text, no file of the studio's machine.", "Send the file's content as chat_template."
            )

    def list(self, page: Page = ALL) -> Listed[BaseModel]:
        """The starter first, then what was added, oldest first."""
        with self.db.read() as session:
            rows = page.of([None, *session.scalars(select(BaseModelRow).order_by(BaseModelRow.created_at, BaseModelRow.id))])
        return rows.as_are(_starter() if row is None else _record(row) for row in rows)

    def show(self, name: str) -> BaseModel:
        """One model by name or ID."""
        found = self._shown(name)
        if not found.loadable:
            return found
        try:
            return found.model_copy(update={"probe": self.probe(name)})
        except ModelError as refusal:
            return found.model_copy(update={"warnings": [str(refusal)]})

    def _shown(self, name: str) -> BaseModel:
        if name == STARTER:
            return _starter()
        with self.db.read() as session:
            model = _record(self.find(session, name))
        return model.model_copy(update={"notices": _notices(Path(model.path))})

    def probe(self, name: str) -> Probe:
        """What is true of a model, as it was stored where that is still current. Raises ModelError for what can't be loaded.

        `name`: as for `resolve`.
        """
        return self.probe_of(self.resolve(name))

    def probe_for_launch(self, ref: ModelRef) -> Probe | None:
        """The same; None for the starter, a Llama of which everything is known."""
        if ref.path == STARTER_FOLDER:
            return None
        return self.probe_of(ref)

    def probe_of(self, ref: ModelRef) -> Probe:
        """The same for a model that has been resolved."""
        config = read_json(ref.path / "config.json")
        with self.db.read() as session:
            row = naming.get(session, BaseModelRow, ref.name)
        key = probes.digest(config)
        if row is not None and row.probe and row.probe.get("digest") == key:
            found = Probe.model_validate(row.probe)
            probes.keep(key, found)
            return found
        found = probes.ask(config, ref.name)
        if row is not None:
            with self.db.write() as session:
                self.find(session, row.id).probe = found.model_dump(mode="json")
        return found

    def cached(self) -> builtins.list[CachedModel]:
        """Models of the hub that lie whole in the person's Hugging Face cache: `add("hub:NAME")` uses them in place."""
        with self.db.read() as session:
            return hub_models.cached(set(session.scalars(select(BaseModelRow.path))))

    def add(self, source: str | Path, name: str | None = None, progress: hub_models.Progress | None = None) -> BaseModel:
        """Check a folder, or fetch `hub:NAME`, and list it. Raises ModelError saying why it can't be used and what would work.

        `progress`: told how much of a download is here.
        """
        text = str(source)
        is_hub = text.startswith(HUB)
        folder = Path(text.removeprefix(HUB))
        if not is_hub:
            folder = _named_folder(text)
        with self.db.read() as session:  # before a long download, so that a bad name is refused at once
            chosen = self._name(session, name, folder.name)
        if is_hub:
            folder = hub_models.folder_of(text.removeprefix(HUB), progress)
        facts = inspect_folder(folder)
        warnings, probe = _checked(folder, facts)
        with self.db.write() as session:
            row = BaseModelRow(
                name=self._name(session, name, chosen),
                path=str(folder),
                architecture=facts.architecture,
                parameters=facts.parameters,
                context=facts.context,
                loadable=facts.loadable,
                reason=facts.reason,
            )
            if probe is not None:
                row.probe = probe.model_dump(mode="json")
            session.add(row)
        found = {"warnings": warnings, "notices": _notices(folder), "probe": probe}
        return _record(row).model_copy(update=found)

    def remove(self, name: str) -> RemovedModel:
        """Forget a model. Refused while something needs it. Only files in STUDIO_HOME are deleted; `kept` says where others stay."""
        if name == STARTER:
            raise StudioError("The starter can't be removed.", "It is part of the studio.")
        with self.db.write() as session:
            row = self.find(session, name)
            adapters = session.scalars(select(AdapterRow.name).where(AdapterRow.base_model == row.name)).all()
            if adapters:
                raise StudioError(f"Model {row.name} is the base of {', '.join(adapters)}.", "Delete these adapters first.")
            active = select(JobRow.name).where(JobRow.base_model == row.name, JobRow.status.in_(UNENDED))
            jobs = session.scalars(active).all()
            if jobs:
                raise StudioError(f"Model {row.name} is needed by {', '.join(jobs)}.", "Cancel these jobs first, or wait for their end.")
            session.delete(row)
        folder = Path(row.path)
        delete_inside(folder, self.settings.models)
        if folder.is_dir():
            return RemovedModel(name=row.name, kept=str(folder))
        return RemovedModel(name=row.name)

    def resolve(self, name: str, allow_path: bool | None = None, *, loadable: bool = False) -> ModelRef:
        """The folder behind a name, an ID or (where allowed) a path. Raises NotFoundError with near names.

        `loadable`: raise ModelError, with the reason, for what can't be chatted with or trained.
        """
        if allow_path is None:
            allow_path = self.at_terminal
        ref = self._known(name)
        if ref is None:
            if not allow_path or not Path(name).expanduser().is_dir():
                raise NotFoundError(f"There is no base model {name!r}.", self._suggest(name))
            folder = Path(name).expanduser().absolute()
            ref = ModelRef(str(folder), folder)
        if loadable:
            facts = inspect_folder(ref.path)
            if not facts.loadable:
                raise ModelError(f"Model {name} can't be loaded: {facts.reason}", facts.fix)
        return ref

    def _known(self, name: str) -> ModelRef | None:
        if name == STARTER:
            return ModelRef(STARTER, STARTER_FOLDER)
        with self.db.read() as session:
            row = naming.get(session, BaseModelRow, name)
        return ModelRef(row.name, Path(row.path)) if row else None

    def find(self, session: Session, name: str) -> BaseModelRow:
        """By ID or name; the starter has no row. Raises NotFoundError with near names."""
        row = naming.get(session, BaseModelRow, name)
        if row is None:
            raise NotFoundError(f"There is no base model {name!r}.", self._suggest(name))
        return row

    def _suggest(self, name: str) -> str:
        with self.db.read() as session:
            known = [STARTER, *session.scalars(select(BaseModelRow.name).order_by(BaseModelRow.created_at))]
        return naming.suggest(name, known)

    def _name(self, session: Session, wanted: str | None, stem: str) -> str:
        is_added = naming.taken_in(session, BaseModelRow.name)
        return naming.choose(wanted, naming.from_stem(stem), lambda name: name == STARTER or is_added(name))


def _named_folder(text: str) -> Path:
    """The path that a person writes. Raises ModelError for what no disk takes."""
    try:
        text.encode("utf-8")
        return Path(text).expanduser().absolute()
    except (RuntimeError, ValueError):  # no such user; half a character
        raise ModelError(
            f"{plain(text)!r} is no path of a folder.", "Give the folder that holds config.json and the *.safetensors files."
        ) from None


def _checked(folder: Path, facts: ModelFacts) -> tuple[list[str], Probe | None]:
    """What a person should know about a folder that can be used, and its probe. Raises ModelError for one that can't be used."""
    if facts.is_tokenizer_only:
        return [], None
    if not facts.loadable:
        raise ModelError(facts.reason, facts.fix)
    if facts.context > MOST_CONTEXT:
        raise ModelError(f"config.json gives a context of {facts.context:.3g} tokens, which no model has.", PUBLISHED)
    found, probe = probes.of_folder(folder)
    found.check(str(folder))
    check_vocabulary(folder, probe.vocabulary)
    unused = unused_weights(folder)
    notes = [found.note()]
    if unused:
        notes.append(f"{len(unused):,} safetensors files are no part of the model and are ignored: {', '.join(unused[:5])}.")
    return [note for note in notes if note], probe


def _notices(folder: Path) -> list[str]:
    """What a folder's config.json says that the studio takes otherwise, or leaves out."""
    try:
        config = read_json(folder / "config.json")
        notes = [text_model(config).note()]
    except ModelError:  # a tokenizer alone, or a folder that is gone: its reason says so
        return []
    if ignored := ignored_code(config):
        notes.append(
            f"config.json names Python of its own ({', '.join(ignored)}), which is ignored: transformers' own "
            f"{config['model_type']} is used."
        )
    notes.append(hub_models.note(folder))
    return [note for note in notes if note]


@lru_cache(maxsize=1)
def _starter_facts() -> ModelFacts:
    return inspect_folder(STARTER_FOLDER)


def _starter() -> BaseModel:
    facts = _starter_facts()
    return BaseModel(
        id=STARTER,
        name=STARTER,
        path=str(STARTER_FOLDER),
        architecture=facts.architecture,
        parameters=facts.parameters,
        context=facts.context,
        loadable=facts.loadable,
        reason=facts.reason,
    )


def _record(row: BaseModelRow) -> BaseModel:
    is_there = Path(row.path).is_dir()
    return BaseModel(
        id=row.id,
        name=row.name,
        path=row.path,
        architecture=row.architecture,
        parameters=row.parameters,
        context=row.context,
        loadable=row.loadable and is_there,
        reason=row.reason if is_there else f"{row.path} is gone. Put it back, or remove the model.",
    )
