"""The one home of every option of a job: form, CLI, API and help derive from it. Names are their libraries' own."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError
from pydantic.fields import FieldInfo

from jobs import sections
from jobs.device_fields import DeviceOption, DtypeOption, FullDeterminismOption, NumThreadsOption, SaveStepsOption, SeedOption
from jobs.objectives import DESCRIPTION, OBJECTIVES, Objective, ObjectiveName, ObjectiveSections
from jobs.row_fields import LearnedTurnsOption, ReasoningOption, SystemMessageOption, TemplateDateOption, TemplateLossesOption
from jobs.sections import Config, Optimizer
from studio.errors import ConfigError
from studio.types import LearnedTurns, Reasoning, RowOptions, SystemMessage

MAX_ROWS_WITHOUT_LEARNED_TOKEN = 0.2  # a launch above this share is refused

DECISIVE = {"objective", "method"}  # options that all others are read by
Method = Literal["lora", "ia3", "prompt-tuning", "p-tuning", "prefix-tuning", "bottleneck", "full"]


class _Options(Config):
    """All options but the objectives' own."""

    base_model: str = Field(default="starter", description="Base model: a name from the Models list.")
    model_name_or_path: str = Field(
        default="", description="Folder of the base model; filled in at launch.", json_schema_extra={"hidden": True}
    )
    objective: ObjectiveName = Field(default="sft", description=DESCRIPTION)
    method: Method = Field(
        default="lora",
        description="What is trained: lora small matrices beside frozen layers (the usual choice); ia3 scales only; prompt-tuning, "
        "p-tuning and prefix-tuning virtual tokens before the text (prefix-tuning in every layer: P-tuning v2's deep prompt); "
        "bottleneck small layers between the frozen ones; full everything, for small models.",
    )

    test_size: float = Field(
        default=0.1,
        title="Share held out",
        ge=0,
        lt=1,
        description="Share of the rows held out to measure what was learned; 0 trains on all.",
    )
    max_length: int = Field(
        default=1024, title="Longest row", ge=8, le=1_048_576, description="Longest row in tokens; what is longer is cut at the end."
    )
    chat_template: str | None = Field(
        default=None,
        description="How a conversation becomes text: chatml, alpaca, alpaca-end, plain or a file; empty takes the model's own or alpaca.",
    )
    assistant_only_loss: bool = Field(
        default=True, title="Learn answers only", description="Learn only the assistant's turns of a conversation; off learns every word."
    )
    completion_only_loss: bool = Field(
        default=True, title="Learn completions only", description="Learn only the completion of a prompt; off learns the prompt too."
    )
    learned_turns: LearnedTurnsOption = "marked"
    reasoning: ReasoningOption = "learn"
    system_message: SystemMessageOption = "keep"
    template_losses: TemplateLossesOption = "refuse"
    template_date: TemplateDateOption = None
    packing: bool = Field(
        default=False,
        description="Put several short rows into one sequence (best fit): faster when rows are much shorter than max_length; a batch then "
        "holds more rows, so there are fewer steps.",
    )
    train_sampling_strategy: Literal["auto", "random", "batch_rebalance", "group_by_length", "sequential"] = Field(
        default="auto",
        title="Order of the rows",
        description="Order of the rows: random; batch_rebalance: random too, but rows of like length of the same step are computed "
        "together, which saves padding and leaves each step as it is; group_by_length: rows of like length in the same step, which "
        "saves more and may learn less where length and content go together; sequential: as they are. Auto rebalances where it saves "
        "much.",
    )
    per_device_train_batch_size: int = Field(
        default=4, title="Batch size", ge=1, le=4096, description="Rows computed at once: higher is faster and costs memory."
    )
    per_device_eval_batch_size: int = Field(
        default=8, title="Batch size while evaluating", ge=1, le=4096, description="Rows computed at once while evaluating."
    )
    gradient_accumulation_steps: int = Field(
        default=1,
        title="Batches per step",
        ge=1,
        le=4096,
        description="Batches added up before a step: a larger batch without more memory.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        title="Recompute activations",
        description="Recompute activations in the backward pass: less memory, about a third slower.",
    )
    learning_rate: float = Field(
        default=2e-4, gt=0, le=1, description="Size of a step; 1e-4 to 3e-4 suits LoRA on models of a billion parameters and more."
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "cosine_with_restarts", "polynomial", "inverse_sqrt"
    ] = Field(default="cosine", title="Learning rate over time", description="How the learning rate falls over the run.")
    warmup_steps: int = Field(default=0, ge=0, description="Steps over which the learning rate rises from zero.")
    num_train_epochs: float = Field(default=3.0, title="Passes over the rows", gt=0, le=1000, description="How often every row is seen.")
    max_steps: int = Field(
        default=-1, title="Most steps", ge=-1, description="Stop after this many steps; -1 lets num_train_epochs decide."
    )
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="Pull of the trained weights towards zero.")
    max_grad_norm: float = Field(
        default=1.0, title="Longest gradient", ge=0, description="Longer gradients are cut to this length; guards against jumps."
    )
    optim: Optimizer = Field(
        default="adamw_torch", title="Optimizer", description="Optimizer; the 8-bit ones save memory where many weights are trained."
    )
    neftune_noise_alpha: float | None = Field(
        default=None,
        title="Noise while training (NEFTune)",
        gt=0,
        description="Noise on the embeddings while training (NEFTune), 5 is usual; empty for none.",
    )
    attn_implementation: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto",
        title="Attention code",
        description="Code that computes attention: auto takes sdpa where the model has it; flash_attention_2 needs the package flash-attn.",
    )
    use_liger_kernel: bool = Field(
        default=False,
        title="Fused kernels (Liger)",
        description="Fused layer code for GPUs: less memory; needs the extra liger (adapter-studio[liger]).",
    )
    logging_steps: int = Field(
        default=1, title="Steps between points of the curve", ge=1, description="Steps between two points of the curve."
    )
    eval_steps: int | None = Field(
        default=None,
        title="Steps between evaluations",
        ge=1,
        description="Steps between two evaluations on the held-out rows; empty chooses about ten per run.",
    )
    save_steps: SaveStepsOption = None
    save_total_limit: int = Field(default=2, title="Checkpoints kept", ge=2, le=100, description="How many checkpoints are kept.")
    load_best_model_at_end: bool = Field(
        default=True,
        title="Take the best checkpoint",
        description="Take the adapter of the step with the lowest loss on the held-out rows, not the last; needs held-out rows.",
    )
    early_stopping_patience: int | None = Field(
        default=3,
        title="Evaluations without progress",
        ge=1,
        description="End training after so many evaluations in a row without a new lowest loss on the held-out rows; empty never does.",
    )
    sample_answers: int = Field(
        default=4,
        title="Sample answers",
        ge=0,
        le=16,
        description="Rows whose questions are answered at every evaluation, to read how it learns; 0 for none.",
    )
    measure_drift: bool = Field(
        default=True,
        title="Watch for forgetting",
        description="At every evaluation measure on a few general questions how far the model has moved away from its base.",
    )
    report_rows: int = Field(
        default=40,
        title="Rows of the report",
        ge=0,
        le=1000,
        description="Held-out rows on which base and adapter are compared once the training has ended; 0 makes no report.",
    )
    report_to: str | list[str] = Field(
        default="none", title="Extra loggers", description="Extra loggers that are installed here, such as tensorboard or wandb."
    )
    seed: SeedOption = 42
    full_determinism: FullDeterminismOption = False
    device: DeviceOption = "auto"
    dtype: DtypeOption = "auto"
    num_threads: NumThreadsOption = 0

    lora: sections.LoraSection = Field(default_factory=sections.LoraSection, description="Low-rank adapter (LoRA)")
    ia3: sections.Ia3Section = Field(default_factory=sections.Ia3Section, description="Learned scales (IA3)")
    prompt: sections.PromptSection = Field(
        default_factory=sections.PromptSection, description="Virtual tokens (prompt, P- and prefix tuning)"
    )
    bottleneck: sections.BottleneckSection = Field(default_factory=sections.BottleneckSection, description="Bottleneck adapters")
    quantization: sections.QuantizationSection = Field(
        default_factory=sections.QuantizationSection, description="Memory-saving base (quantisation)"
    )
    rope: sections.RopeSection = Field(default_factory=sections.RopeSection, description="Long context (RoPE scaling)")


class JobConfig(ObjectiveSections, _Options):
    """One training job, whole. The trainer needs nothing beyond this, the rows and the template."""

    @property
    def objective_entry(self) -> Objective:
        """What the registry says about the objective."""
        return OBJECTIVES[self.objective]

    def row_options(self) -> RowOptions:
        """How the rows are read."""
        return RowOptions(
            LearnedTurns(self.learned_turns), Reasoning(self.reasoning), SystemMessage(self.system_message), self.template_date
        )

    def own_options(self) -> dict[str, Any]:
        """The options of the objective's own section, under the names that trl gives them."""
        if not self.objective_entry.has_options:
            return {}
        values: dict[str, Any] = getattr(self, self.objective).model_dump(mode="json")
        return values

    def cadence(self, steps: int) -> tuple[int, int]:
        """Steps between two checkpoints and between two evaluations of a run of `steps` steps; about ten of each where left empty."""
        tenth = max(math.ceil(steps / 10), 1)
        return self.save_steps or tenth, self.eval_steps or tenth


# options that trl's SFTConfig knows by the same name and that mean the same there
PASSED_THROUGH = frozenset({
    "max_length", "packing", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "weight_decay", "max_grad_norm",
    "optim", "neftune_noise_alpha", "use_liger_kernel", "logging_steps", "save_total_limit", "report_to", "seed",
})  # fmt: skip


@dataclass(frozen=True)
class Option:
    """One option as a form or a help text shows it. `key` is dotted: `lora.r`."""

    key: str
    title: str  # in plain words
    section: str
    type: type
    default: Any
    description: str
    choices: tuple[str, ...]
    minimum: float | None
    maximum: float | None
    nullable: bool
    takes_list: bool
    lists_only: bool = False  # of several values, one alone is a list too


def options() -> list[Option]:
    """Every visible option of JobConfig, in order of declaration, sections last."""
    return list(_options(JobConfig, "", ""))


def _options(model: type[BaseModel], prefix: str, section: str) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _options(field.annotation, f"{name}.", field.description or name)
        elif not (isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("hidden")):
            yield _option(prefix + name, section, field)


def _option(key: str, section: str, field: FieldInfo) -> Option:
    annotation = field.annotation
    arms = [annotation] if get_origin(annotation) in (Literal, list) else list(get_args(annotation)) or [annotation]
    nullable, takes_list = type(None) in arms, any(get_origin(arm) is list for arm in arms)
    single = [arm for arm in arms if arm is not type(None) and get_origin(arm) is not list]
    kind = single[0] if single else get_args(next(arm for arm in arms if get_origin(arm) is list))[0]
    choices: tuple[str, ...] = ()
    if get_origin(kind) is Literal:
        choices = tuple(map(str, get_args(kind)))
    bounds = {name: getattr(m, name) for m in field.metadata for name in ("ge", "gt", "le", "lt") if hasattr(m, name)}
    return Option(
        key=key,
        title=field.title or _words(key),
        section=section,
        type=str if choices else kind,  # type: ignore[arg-type]
        default=field.get_default(call_default_factory=True),
        description=field.description or "",
        choices=choices,
        minimum=bounds.get("ge", bounds.get("gt")),
        maximum=bounds.get("le", bounds.get("lt")),
        nullable=nullable,
        takes_list=takes_list,
        lists_only=not single,
    )


def _words(key: str) -> str:
    """`lora.use_dora` -> `Use dora`: for a name that reads well as it is."""
    words = key.rpartition(".")[2].replace("_", " ")
    return words[0].upper() + words[1:]


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["lora.r=8", 'lora.target_modules=["q_proj"]']` -> a flat dict of dotted keys; values are JSON where they parse as JSON."""
    values: dict[str, Any] = {}
    problems = []
    for item in assignments:
        key, separator, text = item.partition("=")
        if not separator or not key.strip():
            problems.append(f"{item!r} has no '='; write it as key=value")
            continue
        try:
            values[key.strip()] = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            values[key.strip()] = text
    if problems:
        raise ConfigError("; ".join(problems) + ".", "An option is set as KEY=VALUE, such as lora.r=8.", problems=problems)
    return values


def build(*layers: Mapping[str, Any]) -> JobConfig:
    """Merge layers of options, later ones win; keys may be dotted. Raises ConfigError naming every problem at once."""
    config, problem = read(*layers)
    if problem is not None:
        raise problem
    assert config is not None
    return config


OPTIONS_FIX = "Correct these options; `studio train --help` lists all of them with what they take."


def read(*layers: Mapping[str, Any]) -> tuple[JobConfig | None, ConfigError | None]:
    """As `build`, but an option that is wrong is left at its default, so that the others can still be judged; and what was wrong.

    No config where what it is about, the objective or the method, is itself unknown.
    """
    tree: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            _put(tree, key, value)
    try:
        return JobConfig.model_validate(tree), None
    except ValidationError as exc:
        # a field of several types gets a message for each: one per option is enough
        first: dict[str, str] = {}
        for error in exc.errors():
            first.setdefault(_key(error), _problem(error))
    problems = list(first.values())
    for key in first:
        _drop(tree, key)
    try:
        config = JobConfig.model_validate(tree)
    except ValidationError:
        config = None
    if first.keys() & DECISIVE:
        config = None
    return config, ConfigError("; ".join(problems) + ".", OPTIONS_FIX, problems=problems)


def _drop(tree: dict[str, Any], key: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = tree.get(parent)
        if not isinstance(inner, dict):
            return
        tree = inner
    tree.pop(last, None)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        inner = tree.get(parent)
        tree[parent] = inner = inner if isinstance(inner, dict) else {}
        tree = inner
    if isinstance(value, Mapping):
        tree.setdefault(last, {})
        for inner_key, inner_value in value.items():
            _put(tree, f"{last}.{inner_key}", inner_value)
    else:
        tree[last] = value


def _names() -> set[str]:
    return {option.key for option in options()} | set(JobConfig.model_fields)


def _key(error: Any) -> str:
    """The option that an error is about, dotted; pydantic appends the arm of a union to it, which nobody knows."""
    names, parts = _names(), [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        return ".".join(parts)
    return next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in names), ".".join(parts))


def _problem(error: Any) -> str:
    key = _key(error)
    if error["type"] == "extra_forbidden":
        if near := difflib.get_close_matches(key, _names(), n=2):
            return f"{key} is no option, did you mean {' or '.join(near)}"
        return f"{key} is no option"
    message = error["msg"][0].lower() + error["msg"][1:]
    usual = next((option.default for option in options() if option.key == key), None)
    text = f"{key}={error['input']!r}: {message}"
    if usual is None:
        return text
    return f"{text} ({json.dumps(usual)} is usual)"
