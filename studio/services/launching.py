"""What a launch needs before it is a job: every problem found at once, the files of the run, the steps it will take.

Submit, clone, sweep and rerun all go through here. Makes run directories and unsaved Job records; queues nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pydantic import JsonValue
from sqlalchemy.orm import Session

from jobs import config as job_config
from jobs import kinds, objectives, recipes
from jobs.config import MAX_ROWS_WITHOUT_LEARNED_TOKEN, JobConfig
from jobs.rundir import RunDir, write_json
from studio.catalogue import compatibility, memory, suitability
from studio.catalogue.models import ModelRef, inspect_folder
from studio.datasets.rendering import Renderer
from studio.db import job_rows
from studio.db.models import JobRow, new_id
from studio.db.session import Database
from studio.errors import ConfigError, StudioError
from studio.records import Dataset, JobKind, Probe, Refusal, Rendering
from studio.services import launch_memory, loggers
from studio.services.chosen_options import ChosenOptions, fitted, fitted_to_probe
from studio.services.datasets import PARITY_ROWS, DatasetService, day_of
from studio.services.launch_answers import answer_notices
from studio.services.launch_base import check_names, check_positions
from studio.services.launch_rows import nothing_to_learn, parity_notices, refusals_of, rows_seen, template_refusals
from studio.services.models import ModelService
from studio.services.room import Room
from studio.settings import Settings
from studio.types import RowOptions

CHECKED_ROWS = 2000  # of a launch; the trainer checks every row again
MAX_CHILDREN = 64  # of a sweep
SEVERAL = "Change each of these, then launch again."
P = ParamSpec("P")
T = TypeVar("T")
RowReading = tuple[int, str | None, RowOptions, str]  # what decides how a launch reads its rows


class LaunchProblems:
    """All problems of a form at once: each step runs, and what went wrong is raised together."""

    def __init__(self) -> None:
        self.found: list[StudioError] = []

    def gather(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """The step's value, or None with its problem kept."""
        try:
            return step(*args, **kwargs)
        except StudioError as exc:
            self.found.append(exc)
            return None

    def raise_all(self) -> None:
        """Raises what was found, if anything was."""
        if len(self.found) == 1:
            raise self.found[0]
        if self.found:
            texts = list(dict.fromkeys(str(problem) for problem in self.found))
            raise ConfigError(" ".join(texts), SEVERAL, problems=texts)


@dataclass(frozen=True)
class LaunchRequest:
    """What a launch names, as far as it is known here and can be read."""

    dataset: Dataset | None
    model: ModelRef | None
    chosen: list[ChosenOptions]


@dataclass(frozen=True)
class Plan:
    """One training that may be launched: everything is checked."""

    dataset: Dataset
    recipe: str
    config: JobConfig
    renderer: Renderer
    notices: tuple[str, ...] = ()  # what a person must know of it, although it may be launched

    def note(self, session: Session, job: JobRow) -> None:
        """Keep the notices with the job, where the trainer's own are kept too."""
        for text in self.notices:
            job_rows.note(session, job.id, 0, "notice", {"text": text})

    @property
    def split(self) -> tuple[float, int]:
        """Runs of one dataset with the same split have the same rows."""
        return self.config.test_size, self.config.seed


class Launcher:
    """Checks launches and writes run directories."""

    def __init__(self, settings: Settings, db: Database, datasets: DatasetService, models: ModelService) -> None:
        self.settings = settings
        self.db = db
        self.datasets = datasets
        self.models = models
        self.room = Room(settings, db)

    def plan(
        self,
        problems: LaunchProblems,
        data: str,
        base_model: str | ModelRef,
        recipe: str | None,
        layers: Sequence[Mapping[str, Any]],
        *,
        fit_memory: bool = False,
    ) -> list[Plan]:
        """One plan per layer of options; what can't work is in `problems`. Raises NotFoundError for an unknown recipe.

        `fit_memory`: change what was chosen so that it fits the memory that there is.
        """
        chosen = recipes.get(recipe or recipes.DEFAULT_RECIPE)
        asked = self._check(problems, data, base_model, chosen, layers)
        dataset, model = asked.dataset, asked.model
        if problems.found or dataset is None or model is None:
            return []
        renderers: dict[RowReading, Renderer | None] = {}
        compared: dict[RowReading, list[str]] = {}
        plans = []
        for chosen_options in asked.chosen:
            config = chosen_options.config
            filled = {"base_model": model.name, "model_name_or_path": str(model.path)}
            filled["template_date"] = config.template_date or day_of(dataset.created_at)
            config = config.model_copy(update=filled)
            sized = problems.gather(launch_memory.sized, self.room, self.db, config, model, [chosen.options, *layers], fit_memory)
            if sized is None:
                continue
            config = sized.config
            key = (config.max_length, config.chat_template, config.row_options(), config.template_losses)
            if key not in renderers:
                renderers[key] = problems.gather(self._check_rows, problems, dataset, model, config)
            if (renderer := renderers[key]) is None:
                continue
            if key not in compared:
                compared[key] = parity_notices(self.datasets.sample_parity(dataset, renderer, config.max_length))
            answers = problems.gather(answer_notices, self.datasets.path(dataset.id), dataset, renderer, config)
            if answers is not None:
                notices = (*chosen_options.notices, *sized.notices, *compared[key], *answers)
                plans.append(Plan(dataset, chosen.name, config, renderer, notices))
        if plans:
            problems.gather(self.check_disk, [plan.config for plan in plans])
        return plans

    def refusals(self, data: str | None, base_model: str | None, recipe: str | None, options: Mapping[str, Any]) -> list[Refusal]:
        """What stands against a launch, as far as it shows in a few rows; what is not chosen yet is not missed."""
        problems = LaunchProblems()
        problems.gather(self.models.refuse_file, options.get("chat_template"))
        chosen = problems.gather(recipes.get, recipe or recipes.DEFAULT_RECIPE)
        if chosen and not problems.found:
            asked = self._check(problems, data or None, base_model or None, chosen, [options])
            if asked.dataset and asked.model and asked.chosen and not problems.found:
                problems.gather(self._check_template, problems, asked.dataset, asked.model, asked.chosen[0].config)
        return [one for problem in problems.found for one in refusals_of(problem)]

    def rows_seen(self, data: str, base_model: str, recipe: str | None, options: Mapping[str, Any], rows: int) -> Rendering:
        """The first rows, and the figures of all or of a sample, as a launch with these options learns and cuts them."""
        self.models.refuse_file(options.get("chat_template"))
        chosen = recipes.get(recipe or recipes.DEFAULT_RECIPE)
        return rows_seen(self.datasets, self.datasets.show(data), self.models.resolve(base_model), chosen.options, options, rows)

    def _check_template(self, problems: LaunchProblems, dataset: Dataset, model: ModelRef, config: JobConfig) -> None:
        """What the template leaves out of a few rows, or why it refuses them."""
        renderer = Renderer.load(model.path, config.chat_template, config.row_options())
        found = self.datasets.check_for_training(dataset.id, renderer, config.max_length, sample=PARITY_ROWS)
        problems.found += template_refusals(renderer, found, config)
        if found.problem_count > MAX_ROWS_WITHOUT_LEARNED_TOKEN * found.checked:
            raise nothing_to_learn(self.datasets, dataset, renderer, found, config)

    def _check(
        self,
        problems: LaunchProblems,
        data: str | None,
        base_model: str | ModelRef | None,
        chosen: recipes.Recipe,
        layers: Sequence[Mapping[str, Any]],
    ) -> LaunchRequest:
        """Everything that shows without looking at rows; what stands against it is in `problems`."""
        dataset = model = None
        if data is not None:
            dataset = problems.gather(self.datasets.show, data)
        if isinstance(base_model, ModelRef):
            model = base_model
        elif base_model is not None:
            model = problems.gather(self.models.resolve, base_model, loadable=True)
        probe = None
        if model is not None:
            probe = problems.gather(self.models.probe_for_launch, model)
        built = [_built(problems, chosen.options, layer, model, probe) for layer in layers]
        found = [one for one in built if one is not None]
        for config in (one.config for one in found):
            if dataset:
                problems.gather(check_kind, dataset, config)
                problems.gather(check_held_out, dataset, config)
            problems.gather(loggers.check, config)
            against = standing_against(config, model, probe)
            problems.found += against
            if model and not against:
                problems.gather(check_positions, config, model)
                if probe is not None:
                    problems.gather(check_names, config, model, probe)
        return LaunchRequest(dataset, model, found)

    def _check_rows(self, problems: LaunchProblems, dataset: Dataset, model: ModelRef, config: JobConfig) -> Renderer:
        """The renderer of this run; refuses rows that would teach nothing, and a template that leaves out what they say."""
        renderer = Renderer.load(model.path, config.chat_template, config.row_options())
        found = self.datasets.check_for_training(dataset.id, renderer, config.max_length, sample=CHECKED_ROWS)
        if not found.rows:
            raise ConfigError(f"Dataset {dataset.name} has no rows to train on.", "Choose another.")
        problems.found += template_refusals(renderer, found, config)
        if found.share_without_learned_tokens > MAX_ROWS_WITHOUT_LEARNED_TOKEN:
            raise nothing_to_learn(self.datasets, dataset, renderer, found, config)
        return renderer

    def check_disk(self, configs: Sequence[JobConfig]) -> None:
        """Refuses runs whose checkpoints would not fit together. Raises ConfigError with both figures."""
        needed = sum(memory.predict_disk_bytes(memory.model_config(Path(c.model_name_or_path)), c) for c in configs)
        free = shutil.disk_usage(self.settings.runs).free
        if needed > free:
            raise ConfigError(
                f"The run needs about {needed / 1e6:.0f} MB of disk for checkpoints; {self.settings.runs} has {free / 1e6:.0f} MB left.",
                "Make room, lower save_total_limit or lora.r, or put STUDIO_HOME on a larger disk.",
            )

    @contextlib.contextmanager
    def jobs(self, plans: Sequence[Plan]) -> Iterator[list[JobRow]]:
        """Unsaved jobs with their run directories, which go again when the block does not end well."""
        runs: list[RunDir] = []
        try:
            made, rows, splits = [], 0, dict[tuple[float, int], tuple[RunDir, int]]()
            for number, plan in enumerate(plans):
                runs.append(run := RunDir(self.settings.runs / new_id()))
                run.path.mkdir(parents=True)
                if plan.split in splits:
                    source, rows = splits[plan.split]
                    _link_rows(source, run)
                else:
                    written = self.datasets.write_run_files(plan.dataset.id, run, *plan.split)
                    if plan.config.test_size > 0 and not written.eval_rows:
                        raise _nothing_held_out(plan.dataset, plan.config)
                    rows = written.train_rows
                    splits[plan.split] = (run, rows)
                write_run(run, plan.config, plan.renderer)
                made.append(
                    training(
                        run,
                        plan.recipe,
                        plan.config,
                        plan.dataset.id,
                        rows,
                        created_at=time.time() + number * 1e-4,
                    )
                )
            yield made
        except BaseException:
            for run in runs:
                shutil.rmtree(run.path, ignore_errors=True)
            raise


def _built(
    problems: LaunchProblems, recipe: Mapping[str, Any], layer: Mapping[str, Any], model: ModelRef | None, probe: Probe | None
) -> ChosenOptions | None:
    """One configuration, as far as it can be read: what is wrong is in `problems`, and the rest can still be judged."""
    config, problem = job_config.read(recipe, layer)
    if problem is not None:
        problems.found.append(problem)
    if config is None:
        return None
    if model is None:
        return ChosenOptions(config)
    found = fitted(config, layer, memory.model_config(model.path), inspect_folder(model.path).context, model.name)
    if probe is None:
        return found
    return fitted_to_probe(found, layer, probe, model.name)


def standing_against(config: JobConfig, model: ModelRef | None, probe: Probe | None = None) -> list[ConfigError]:
    """Every reason why this configuration can't be trained here, each with the change that removes it."""
    shape = None
    if model:
        shape = memory.model_config(model.path)
    found = compatibility.without_device(config) + compatibility.conflicts(config, memory.device_of(config), shape)
    if probe is not None:
        found += suitability.conflicts(config, probe)
    return [ConfigError(one.sentence, one.fix, change=dict(one.change)) for one in found]


def check_kind(dataset: Dataset, config: JobConfig) -> None:
    """Refuses rows of a kind that the objective does not train on. Raises ConfigError with an objective that does."""
    wanted = config.objective_entry.trains_on
    if dataset.kind in wanted:
        return
    reason = f"Dataset {dataset.name} holds {dataset.kind} rows, and {config.objective} learns from {' or '.join(wanted)} rows."
    fitting = next((entry.name for entry in objectives.ENTRIES if dataset.kind in entry.trains_on), None)
    if fitting is None:
        raise ConfigError(reason, "Choose a dataset of conversations, instructions or texts.", change={})
    fix = f"Set objective={fitting} (recipe {recipes.of_objective(fitting).name}), or choose another dataset."
    raise ConfigError(reason, fix, change={"objective": fitting})


def check_held_out(dataset: Dataset, config: JobConfig) -> None:
    if config.test_size > 0 and dataset.rows < 2:
        raise _nothing_held_out(dataset, config)


def _nothing_held_out(dataset: Dataset, config: JobConfig) -> ConfigError:
    return ConfigError(
        f"With test_size={config.test_size:g} no row of {dataset.name} is left to be held out: it has too few that differ.",
        "Set test_size=0 to train on all, or add rows.",
    )


def write_run(run: RunDir, config: JobConfig, renderer: Renderer) -> None:
    """Template and options; the rows are there already."""
    run.chat_template.write_text(renderer.template, encoding="utf-8")
    write_json(run.template_card, renderer.card())
    run.write_config(config.model_dump(mode="json"))


def training(run: RunDir, recipe: str, config: JobConfig, dataset_id: str | None, rows: int, created_at: float) -> JobRow:
    """The unsaved, unnamed row of a run; `dataset_id` None where its rows come with it."""
    return JobRow(
        id=run.path.name,
        kind=JobKind.TRAIN,
        queue=kinds.queue_of(JobKind.TRAIN),
        recipe=recipe,
        config=config.model_dump(mode="json"),
        run_dir=str(run.path),
        dataset_id=dataset_id,
        base_model=config.base_model,
        planned_steps=planned_steps(config, rows),
        created_at=created_at,
    )


def planned_steps(config: JobConfig, rows: int) -> int | None:
    """Steps of a run over `rows` rows, as the trainer will count them; None where packing decides."""
    if config.max_steps > 0:
        return config.max_steps
    if config.packing or not rows:
        return None
    per_epoch = max(
        math.ceil(math.ceil(rows / config.per_device_train_batch_size) / config.gradient_accumulation_steps),
        1,
    )
    return math.ceil(config.num_train_epochs * per_epoch)


def combinations(grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> list[dict[str, JsonValue]]:
    """Every choice of one value per key, the last key changing fastest. Raises ConfigError naming every problem of the grid."""
    known = {option.key for option in job_config.options()} - {"base_model"}
    problems = [f"{key} is set and varied at once" for key in grid if key in fixed]
    reasons = {"base_model": "base_model can't be varied"}
    problems += [reasons.get(key, f"{key} is no option") for key in grid if key not in known]
    problems += [f"{key} has no list of values" for key, values in grid.items() if not isinstance(values, (list, tuple)) or not values]
    if not grid:
        problems.append("a sweep varies at least one option")
    if problems:
        raise ConfigError("; ".join(problems) + ".", "Write each as key=[value, value].", problems=problems)
    count = math.prod(len(values) for values in grid.values())
    if count > MAX_CHILDREN:
        raise ConfigError(
            f"This grid has {count} combinations; a sweep holds at most {MAX_CHILDREN}.",
            "Leave out some values.",
        )
    found = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if any(one == other for one, other in itertools.combinations(found, 2)):
        raise ConfigError("The grid names a value twice.", "Leave out the second.")
    return found


def _link_rows(source: RunDir, target: RunDir) -> None:
    """The same rows in another run: nobody writes to them, so one copy on disk will do."""
    for old, new in ((source.train, target.train), (source.eval, target.eval)):
        try:
            os.link(old, new)
        except OSError:  # a file system without links
            shutil.copyfile(old, new)
