"""Which models can compress: the shipped classifier, the starter, base models that were added, compressors that were fetched."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path

from studio.catalogue import hub_cache
from studio.compress import models as kinds
from studio.errors import ModelError, NotFoundError
from studio.records import AvailableCompressor, Compressors, KnownCompressor
from studio.services import hub_models, naming
from studio.services.models import HUB, STARTER, ModelService
from studio.settings import Settings

WORDS = "starter-words"  # the classifier that ships
KNOWN = (
    ("microsoft/llmlingua-2-xlm-roberta-large-meetingbank", "LLMLingua-2, many languages, 560 M parameters"),
    ("microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank", "LLMLingua-2, many languages, small: 178 M parameters"),
    ("openai-community/gpt2", "LLMLingua and LongLLMLingua on a laptop, English, 124 M parameters"),
    ("microsoft/phi-2", "LLMLingua and LongLLMLingua, English, 2.7 B parameters"),
    ("NousResearch/Llama-2-7b-hf", "LLMLingua and LongLLMLingua as published, 7 B parameters"),
)
CAUSAL_METHODS = ("llmlingua", "longllmlingua", "selective_context", "structured", "self_information")


class CompressorCatalogue:
    """Finds compressors, and the models whose tokenizers count, by their names."""

    def __init__(self, settings: Settings, models: ModelService) -> None:
        self.settings = settings
        self.models = models

    def list(self) -> Compressors:
        """What can compress here, the shipped classifier first, and good compressors of the hub for machines that reach it."""
        found = [self._described(name, path) for name, path in self._candidates()]
        known = [KnownCompressor(name=HUB + name, title=title) for name, title in KNOWN]
        return Compressors(compressors=[entry for entry in found if entry is not None], known=known)

    def resolve(self, name: str, *, counts: bool = False) -> Path:
        """The folder behind a name (or, at the terminal, a folder or hub:NAME). Raises NotFoundError or ModelError."""
        if name.startswith(HUB) and self.models.at_terminal:
            return self._fetched(name.removeprefix(HUB))
        known = dict(self._candidates())
        if name in known:
            folder = known[name]
        elif self.models.at_terminal and Path(name).expanduser().is_dir():
            folder = Path(name).expanduser().absolute()
        else:
            raise NotFoundError(f"There is no compressor or model {name!r}.", naming.suggest(name, [*known]))
        if not counts:
            kinds.inspect(folder)
        return folder

    def _candidates(self) -> builtins.list[tuple[str, Path]]:
        listed = [(model.name, Path(model.path)) for model in self.models.list()]
        names = {name for name, _ in listed}
        fetched: builtins.list[Path] = []
        if self.settings.models.is_dir():
            fetched = sorted(path for path in self.settings.models.iterdir() if path.is_dir())
        others = [*((path.name, path) for path in fetched), *_cached()]
        return [(WORDS, kinds.WORDS_FOLDER), *listed, *((name, path) for name, path in others if name not in names)]

    def _described(self, name: str, path: Path) -> AvailableCompressor | None:
        try:
            facts = kinds.inspect(path)
        except ModelError:
            return None
        title = f"{facts.model_type}, {facts.kind}"
        if name == WORDS:
            title = "word importance, a distilled heuristic"
        can = {kinds.CLASSIFIER: ["llmlingua2", "structured"], kinds.CAUSAL: [*CAUSAL_METHODS]}[facts.kind]
        return AvailableCompressor(name=name, title=title, kind=facts.kind, methods=can, cuts_words=facts.cuts_words)

    def _fetched(self, repository: str) -> Path:
        """A compressor of the hub: where an earlier studio kept it, or in the Hugging Face cache, into which it is fetched once."""
        for folder in (self.settings.models / naming.from_stem(Path(repository).name), *hub_cache.snapshots(repository)):
            if _compresses(folder):
                return folder
        return hub_models.fetch(repository, "--compressor")


def _cached() -> Iterator[tuple[str, Path]]:
    """What of the person's Hugging Face cache can compress, by the last part of its name."""
    for repository in hub_cache.repositories():
        folder = next(filter(_compresses, hub_cache.snapshots(repository)), None)
        if folder is not None:
            yield naming.from_stem(repository.rpartition("/")[2]), folder


def _compresses(folder: Path) -> bool:
    try:
        kinds.inspect(folder)
    except ModelError:
        return False
    return True


def default_for(method: str | None) -> str:
    """The compressor of a method where none is named."""
    return WORDS if method in (None, "llmlingua2") else STARTER
