"""Training objectives: one entry each, read by the form, the command line, the launch, the memory prediction, the
compatibility table, the trainer and the script. Data only.

To add one of trl's objectives: its name, its section and its entry here, and a recipe in jobs/recipes.py. A trainer
that needs more than the classes of jobs/trainers/objectives.py gets one there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, field_validator

from jobs.sections import Config

ObjectiveName = Literal["sft", "continued-pretraining", "dpo", "kto", "orpo"]

# of trl's DPO losses those that need nothing else to be set
DpoLoss = Literal[
    "sigmoid", "sft", "hinge", "ipo", "nca_pair", "robust", "exo_pair", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm",
]  # fmt: skip


class DpoSection(Config):
    """Direct preference optimisation; names and meanings follow trl.DPOConfig."""

    beta: float = Field(
        default=0.1,
        title="Hold on the base",
        gt=0,
        le=100,
        description="How firmly answers stay near the base's: higher changes less.",
    )
    loss_type: list[DpoLoss] = Field(
        default=["sigmoid"],
        title="Loss",
        min_length=1,
        description="Loss: sigmoid is plain DPO; add sft to keep imitating the better answers, without which short or empty answers can "
        "win; ipo and others are variants from papers.",
    )
    loss_weights: list[float] | None = Field(
        default=None,
        title="Weights of the losses",
        description="One weight for each loss, such as [1.0, 0.5]; empty weighs them alike.",
    )
    label_smoothing: float = Field(
        default=0.0,
        title="Doubt in the labels",
        ge=0,
        lt=0.5,
        description="Share of pairs that may be marked the wrong way round; used by the losses robust and exo_pair.",
    )
    ld_alpha: float | None = Field(
        default=None,
        title="Weight of extra length",
        ge=0,
        le=1,
        description="How much the part counts by which one answer is longer (LD-DPO); empty counts it fully.",
    )
    use_weighting: bool = Field(
        default=False,
        title="Weigh by likelihood (WPO)",
        description="Weigh pairs by how likely the model itself would write them (WPO).",
    )
    precompute_ref_log_probs: bool = Field(
        default=False,
        title="Ask the base once",
        description="Ask the base about every row before training instead of at each step: saves time over several passes.",
    )

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class KtoSection(Config):
    """Learning from answers marked good or bad; names and meanings follow trl.KTOConfig."""

    beta: float = Field(
        default=0.1,
        title="Hold on the base",
        gt=0,
        le=100,
        description="How firmly answers stay near the base's: higher changes less.",
    )
    loss_type: Literal["kto", "apo_zero_unpaired"] = Field(
        default="kto",
        title="Loss",
        description="Loss: kto as in its paper, apo_zero_unpaired without the comparison with other rows.",
    )
    desirable_weight: float = Field(
        default=1.0,
        title="Weight of good answers",
        ge=0,
        le=100,
        description="Weight of good answers; raise it where they are rare.",
    )
    undesirable_weight: float = Field(
        default=1.0,
        title="Weight of bad answers",
        ge=0,
        le=100,
        description="Weight of bad answers; raise it where they are rare.",
    )


class OrpoSection(Config):
    """Imitating and preferring at once; names and meanings follow trl's ORPOConfig."""

    beta: float = Field(
        default=0.1,
        title="Weight of the preference",
        gt=0,
        le=100,
        description="How much preferring counts beside imitating (lambda).",
    )


class ObjectiveSections(Config):
    """The sections of JobConfig that belong to one objective each, under its name."""

    dpo: DpoSection = Field(default_factory=DpoSection, description="Prefer the better of two answers (DPO)")
    kto: KtoSection = Field(default_factory=KtoSection, description="Answers marked good or bad (KTO)")
    orpo: OrpoSection = Field(default_factory=OrpoSection, description="Imitate and prefer at once (ORPO)")


class RowForm(StrEnum):
    """What a row of the dataset becomes before it is trained on."""

    IMITATION = "imitation"  # input_ids and labels
    PAIRED = "paired"  # prompt_ids with chosen_ids and rejected_ids
    MARKED = "marked"  # prompt_ids and completion_ids with a label, good or bad


class TrainerFamily(StrEnum):
    """How trl's trainer of an objective takes rows that are tokens already."""

    SFT = "sft"  # skips its own preparation when asked to
    PREPARED = "prepared"  # prepares rows in `_prepare_dataset`
    WHOLE = "whole"  # an older one: whole sequences, prepared in `tokenize_row`; recasts a quantised base


@dataclass(frozen=True)
class Objective:
    """One training objective. Options named here are JobConfig's, arguments are those of trl's configuration class."""

    name: ObjectiveName
    help: str  # what it does, a clause of the option's description
    trains_on: tuple[str, ...]  # kinds of datasets
    rows: RowForm
    trainer: str  # trl's class, `module:Class`
    arguments: str  # trl's configuration class, `module:Class`
    family: TrainerFamily
    only_options: tuple[str, ...]  # general options that only some objectives use, and this one does
    orders: tuple[str, ...]  # values of train_sampling_strategy that it can follow
    computed_together: int  # sequences that one row adds to a batch
    has_whole_logits: bool  # whether trl keeps the logits of whole rows, not of tiles
    measures_against_base: bool  # whether the untouched base is its reference
    takes_virtual_tokens: bool  # whether prompt tuning works with it
    fixed: Mapping[str, Any] = field(default_factory=dict)  # arguments that no option decides
    memory_note: str = ""  # said beside a prediction

    @property
    def packs(self) -> bool:
        return "packing" in self.only_options

    @property
    def has_options(self) -> bool:
        """Whether it has options of its own, in JobConfig under its name."""
        return self.name in ObjectiveSections.model_fields

    @property
    def imitates(self) -> bool:
        return self.rows is RowForm.IMITATION


# trl would add a loss that spreads tokens evenly over experts, which teaches the frozen switches between them nothing
ROUTERS_STAY = {"router_aux_loss_coef": 0.0}
MASKS = ("assistant_only_loss", "completion_only_loss")
ANY_ORDER = ("auto", "random", "batch_rebalance", "group_by_length", "sequential")
BY_CHANCE_OR_AS_THEY_ARE = ("auto", "random", "sequential")

ENTRIES = (
    Objective(
        name="sft",
        help="sft imitates the answers",
        trains_on=("sft", "text"),
        rows=RowForm.IMITATION,
        trainer="trl:SFTTrainer",
        arguments="trl:SFTConfig",
        family=TrainerFamily.SFT,
        only_options=("packing", *MASKS),
        orders=ANY_ORDER,
        computed_together=1,
        has_whole_logits=False,
        measures_against_base=False,
        takes_virtual_tokens=True,
        fixed={"eval_packing": False, **ROUTERS_STAY},
    ),
    Objective(
        name="continued-pretraining",
        help="continued-pretraining reads on in plain texts",
        trains_on=("text",),
        rows=RowForm.IMITATION,
        trainer="trl:SFTTrainer",
        arguments="trl:SFTConfig",
        family=TrainerFamily.SFT,
        only_options=("packing",),
        orders=ANY_ORDER,
        computed_together=1,
        has_whole_logits=False,
        measures_against_base=False,
        takes_virtual_tokens=True,
        fixed={"eval_packing": False, **ROUTERS_STAY},
    ),
    Objective(
        name="dpo",
        help="dpo prefers the better of two answers, measured against the base",
        trains_on=("preference",),
        rows=RowForm.PAIRED,
        trainer="trl:DPOTrainer",
        arguments="trl:DPOConfig",
        family=TrainerFamily.PREPARED,
        only_options=(),
        orders=BY_CHANCE_OR_AS_THEY_ARE,
        computed_together=2,
        has_whole_logits=False,
        measures_against_base=True,
        takes_virtual_tokens=True,
        fixed=ROUTERS_STAY,
    ),
    Objective(
        name="kto",
        help="kto learns from answers marked good or bad",
        trains_on=("unpaired-preference",),
        rows=RowForm.MARKED,
        trainer="trl:KTOTrainer",
        arguments="trl:KTOConfig",
        family=TrainerFamily.PREPARED,
        only_options=(),
        orders=("auto", "sequential"),  # each row is compared with its neighbour in the batch
        computed_together=1,
        has_whole_logits=False,
        measures_against_base=True,
        takes_virtual_tokens=True,
        fixed={"train_sampling_strategy": "sequential", **ROUTERS_STAY},
    ),
    Objective(
        name="orpo",
        help="orpo imitates and prefers at once, without a base to compare with",
        trains_on=("preference",),
        rows=RowForm.PAIRED,
        trainer="trl.experimental.orpo:ORPOTrainer",
        arguments="trl.experimental.orpo:ORPOConfig",
        family=TrainerFamily.WHOLE,
        only_options=(),
        orders=BY_CHANCE_OR_AS_THEY_ARE,
        computed_together=2,
        has_whole_logits=True,
        measures_against_base=False,
        takes_virtual_tokens=False,
        fixed={"remove_unused_columns": False},
        memory_note="ORPO computes the logits of whole rows, which trl does not tile: long rows and large vocabularies are dear.",
    ),
)

OBJECTIVES: dict[str, Objective] = {entry.name: entry for entry in ENTRIES}
DESCRIPTION = "What training optimises: " + "; ".join(entry.help for entry in ENTRIES) + "."


def only_with() -> dict[str, tuple[str, ...]]:
    """General options that only some objectives use -> those objectives."""
    options = dict.fromkeys(option for entry in ENTRIES for option in entry.only_options)
    return {option: tuple(entry.name for entry in ENTRIES if option in entry.only_options) for option in options}
