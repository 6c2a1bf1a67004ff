"""What a launch refuses because of its rows: why they teach nothing, and what the chat template leaves out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from jobs import config as job_config
from jobs.config import MAX_ROWS_WITHOUT_LEARNED_TOKEN, JobConfig
from jobs.trainers.rows import TrainedRows
from studio.catalogue.models import ModelRef
from studio.datasets.rendering import Renderer
from studio.datasets.template_losses import losses
from studio.errors import ConfigError, StudioError
from studio.records import Advice, Dataset, Parity, Refusal, Rendering, TemplateLoss, TrainingCheck
from studio.services.chosen_options import longest_row
from studio.services.datasets import DatasetService
from studio.types import SystemMessage

_WHY_NOTHING = {
    "marked": "they have no answer, or every answer is marked not to be trained.",
    "all": "they have no answer of the assistant.",
    "last": "they have no answer of the assistant.",
}


def nothing_to_learn(
    datasets: DatasetService, dataset: Dataset, renderer: Renderer, found: TrainingCheck, config: JobConfig
) -> ConfigError:
    """Why rows teach nothing: what most of them have in common, in the template's own words where it refuses them."""
    share = (
        f"{found.share_without_learned_tokens:.0%} of the rows of {dataset.name} hold no token to learn "
        f"(more than {MAX_ROWS_WITHOUT_LEARNED_TOKEN:.0%} is refused)"
    )
    most = max(found.problem_count, found.cut_before_learned, found.nothing_learned)
    if most == found.problem_count:
        first = found.problems[0]
        reason = f"{share}: row {first.line}: {first.problem}"
        if not _folding_helps(datasets, dataset, renderer, first.line):
            return ConfigError(reason, first.fix)
        fix = "Set system_message=fold to put the system message before the first question, or choose another template."
        return ConfigError(reason, fix, change={"system_message": "fold"})
    if most == found.cut_before_learned:
        needed = max(int(found.p99), config.max_length + 1)
        reason = f"{share} with max_length={config.max_length}: their answers begin behind it."
        return ConfigError(reason, f"Set max_length to {needed} or more, or shorten the prompts.", change={"max_length": needed})
    return ConfigError(f"{share}: {_WHY_NOTHING[config.learned_turns]}", "Correct these rows, or set learned_turns.")


def _folding_helps(datasets: DatasetService, dataset: Dataset, renderer: Renderer, row: int) -> bool:
    """Whether a row that the template refuses is accepted with its system message in the question."""
    folding = renderer.with_options(replace(renderer.options, system_message=SystemMessage.FOLD))
    try:
        folding.example(datasets.rows(dataset.id, offset=row - 1, limit=1)[0])
    except StudioError:
        return False
    return renderer.options.system_message is not SystemMessage.FOLD


def parity_notices(found: Parity) -> list[str]:
    """What a person must know of a few rows that were compared with what chat sends."""
    notices = [loss.sentence for loss in found.losses]
    if first := found.first_difference:
        notices.append(
            f"Training and chat see the same tokens in {found.identical} of {found.rows} rows looked at. "
            f"First difference: row {first.row}. {first.reason}"
        )
    if found.training_date:
        notices.append(f"The chat template prints a date: {found.training_date} in every row; chat prints the day's own.")
    return notices


def rows_seen(
    datasets: DatasetService, dataset: Dataset, model: ModelRef, recipe: Mapping[str, Any], options: Mapping[str, Any], rows: int
) -> Rendering:
    """Rows with the options of `recipe` and `options` over them, as far as these can be read. Raises ConfigError where nothing can."""
    config, problem = job_config.read(recipe, options)
    if config is None:
        raise problem or ConfigError("These options can't be read.", "Correct them.")
    chosen = longest_row(model, config, options)
    config = chosen.config
    renderer = datasets.renderer(dataset, model.path, config.chat_template, config.row_options())
    found = datasets.rendering(dataset, renderer, TrainedRows(renderer, config), config.max_length, rows)
    advice = found.advice
    if config.template_losses == "accept":  # a person goes on knowingly: it is said, and nothing is asked
        advice = [Advice(sentence=one.sentence, alternatives=[]) for one in advice if isinstance(one, TemplateLoss)]
        advice += [one for one in found.advice if not isinstance(one, TemplateLoss)]
    return found.model_copy(update={"length_notice": " ".join(chosen.notices), "advice": advice})


def refusals_of(problem: StudioError) -> list[Refusal]:
    """A problem as the page shows it: one line for each thing that is wrong, or for each way on."""
    if ways := problem.details.get("alternatives"):
        first, *others = [Refusal(message="Or:", fix=f"{way['title']}.", change=way["change"]) for way in ways]
        return [first.model_copy(update={"message": problem.message}), *others]
    return [
        Refusal(message=one, fix=problem.fix, change=problem.details.get("change", {}))
        for one in problem.details.get("problems") or [problem.message]
    ]


def template_refusals(renderer: Renderer, found: TrainingCheck, config: JobConfig) -> list[ConfigError]:
    """One per kind of thing that the chat template leaves out, with every way on; none where a person goes on knowingly."""
    if config.template_losses == "accept":
        return []
    refused = []
    for loss in losses(renderer, found.left_out, found.checked):
        ways = [f"{_assigned(way.change)} ({way.title[0].lower()}{way.title[1:]})" for way in loss.alternatives]
        alternatives = [way.model_dump() for way in loss.alternatives]
        fix = f"Set {', or '.join(ways)}."
        refused.append(ConfigError(loss.sentence, fix, change=loss.alternatives[0].change, alternatives=alternatives))
    return refused


def _assigned(change: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in change.items())
