"""`studio jobs script`: a training as a TRL script with the same settings, rows and order of rows.

The rows are written beside the script as token ids: what a job learns is marked token by token, which trl's own kinds of datasets
cannot say for every template. Nothing here imports torch.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from jobs.rundir import RunDir
from jobs.trainers import base, objectives
from jobs.trainers.rows import token_rows
from studio import privacy
from studio.datasets.rendering import Renderer
from studio.errors import NotFoundError
from studio.records import Probe
from studio.services.script_text import Script, text

TRAIN, EVAL, TEMPLATE = "train.jsonl", "eval.jsonl", "chat_template.jinja"  # behind the script's own name


@dataclass(frozen=True)
class ScriptWriter:
    """Writes the script of one run and the files that it reads. Raises NotFoundError where the run's files are gone."""

    name: str
    run: RunDir
    config: JobConfig
    renderer: Renderer
    asks_model: bool = False  # see studio.services.script_text

    @classmethod
    def of(cls, name: str, config: JobConfig, run: RunDir, probe: Probe | None = None) -> ScriptWriter:
        if not run.train.is_file():
            raise NotFoundError(f"The rows of {name} are gone from {run.path}.", "Restore them, or train on the data again.")
        folder = base.folder_of(config)
        config = config.model_copy(update={"max_length": base.max_length(config, folder)})
        return cls(
            name, run, config, Renderer.load(folder, run.kept_template() or config.chat_template, config.row_options()), _asks(probe)
        )

    def text(self, stem: str) -> str:
        """The script; `stem` begins the names of the files beside it."""
        config = self.config.model_copy(update={"train_sampling_strategy": self._order()})
        return text(Script(self.name, stem, config, self._padding(), self.asks_model))

    def files(self, stem: str) -> Iterator[tuple[str, Iterator[str]]]:
        """Name and lines of each file that the script reads."""
        yield f"{stem}.{TRAIN}", self._lines(self.run.train)
        yield f"{stem}.{EVAL}", self._lines(self.run.eval)
        yield f"{stem}.{TEMPLATE}", iter([self.renderer.template])

    def write(self, script: Path) -> list[str]:
        """Write the script and, beside it, what it reads; the names of those files."""
        stem = re.sub(r"[^\w.-]", "-", script.stem)  # it stands in the script, where a quote would end a text
        script.write_text(self.text(stem), encoding="utf-8")
        privacy.hand_out(script)
        names = []
        for name, lines in self.files(stem):
            with script.with_name(name).open("w", encoding="utf-8") as file:
                file.writelines(lines)
            privacy.hand_out(script.with_name(name))
            names.append(name)
        return names

    def write_zip(self, archive: Path) -> None:
        """The same in one .zip file."""
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(f"{self.name}.py", self.text(self.name))
            for name, lines in self.files(self.name):
                with packed.open(name, "w", force_zip64=True) as file:
                    file.writelines(line.encode() for line in lines)

    def _lines(self, rows: Path) -> Iterator[str]:
        if not rows.is_file():
            return
        for row in token_rows(rows, self.renderer, self.config):
            if row.columns is not None:
                yield json.dumps({name: _plain(value) for name, value in row.columns.items()}) + "\n"

    def _order(self) -> str:
        """The order of rows that the job takes, which the lengths of its rows may decide."""
        if self.config.train_sampling_strategy != "auto" or not self.config.objective_entry.imitates:
            return objectives.sampling(self.config, [])
        rows = token_rows(self.run.train, self.renderer, self.config)
        return objectives.sampling(self.config, [len(row.columns["input_ids"]) for row in rows if row.columns])

    def _padding(self) -> str:
        ids = (self.renderer.pad_token_id, self.renderer.eos_token_id, 0)
        return str(self.renderer.tokenizer.id_to_token(next(one for one in ids if one is not None)))


def _asks(probe: Probe | None) -> bool:
    """Whether peft's all-linear and bitsandbytes alone would train something else than the job."""
    return probe is not None and bool(probe.targets.left_out or probe.targets.parameters or probe.text_prefix)


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return value
