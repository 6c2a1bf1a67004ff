"""The sections of a job's options for its method and the base's precision; an objective's lies beside its entry in jobs/objectives.py."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

# of transformers' optimizers those that run with what is installed here, on CPU and CUDA
Optimizer = Literal[
    "adamw_torch", "adamw_torch_fused", "adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit",
    "lion_8bit", "lion_32bit", "paged_lion_8bit", "paged_lion_32bit", "ademamix", "ademamix_8bit", "paged_ademamix_8bit",
    "paged_ademamix_32bit", "adafactor", "sgd", "adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit",
]  # fmt: skip
ALL_LINEAR = "all-linear"  # of target_modules; studio.catalogue.targets says what it means


class Config(BaseModel):
    """Frozen, and refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class LoraSection(Config):
    """Low-rank adapter; names and meanings follow peft.LoraConfig."""

    r: int = Field(default=16, title="Rank", ge=1, le=512, description="Rank of the update: higher can learn more and costs memory.")
    lora_alpha: int = Field(default=32, title="Strength", ge=1, le=2048, description="Strength of the update; usually one or two times r.")
    lora_dropout: float = Field(
        default=0.0,
        title="Dropout",
        ge=0,
        lt=1,
        description="Share of inputs dropped while training; 0.05 helps against overfitting on few rows.",
    )
    target_modules: str | list[str] = Field(
        default=ALL_LINEAR,
        title="Layers that learn",
        description='Layers that learn: all-linear, or a list of names such as ["q_proj", "v_proj"].',
    )
    use_rslora: bool = Field(
        default=False, title="Steadier scaling (rsLoRA)", description="Scale by the square root of r (rsLoRA): steadier at high ranks."
    )
    use_dora: bool = Field(
        default=False,
        title="Direction and length apart (DoRA)",
        description="Learn the direction and the length of each weight apart (DoRA): often a little better, slower to train and to serve.",
    )
    init_lora_weights: Literal["default", "gaussian", "pissa"] = Field(
        default="default",
        title="Where the update starts",
        description="Where the update starts: default at zero; pissa from the base's main directions, which learns faster; gaussian as "
        "diffusion models do. What is saved is a plain LoRA in each case.",
    )
    loraplus_lr_ratio: float | None = Field(
        default=None,
        title="Faster second matrix (LoRA+)",
        gt=0,
        le=128,
        description="How many times faster the second matrix learns (LoRA+); 16 is usual, empty learns both alike.",
    )
    modules_to_save: list[str] | None = Field(
        default=None,
        title="Layers trained whole",
        description='Layers that are trained and saved whole beside the low-rank ones, such as ["embed_tokens"]; empty for none.',
    )


class Ia3Section(Config):
    """Learned scales (IA3); names follow peft.IA3Config."""

    target_modules: str | list[str] = Field(
        default="auto",
        title="Layers that are scaled",
        description="Layers that get a learned scale: auto takes keys, values and the last layer of each block, as the paper does.",
    )
    feedforward_modules: list[str] | None = Field(
        default=None,
        title="Of these, feed-forward",
        description="Which of the named layers are feed-forward ones, whose input is scaled; leave empty with auto.",
    )


class PromptSection(Config):
    """Virtual tokens before the text; names follow peft's PromptTuningConfig, PromptEncoderConfig and PrefixTuningConfig."""

    num_virtual_tokens: int = Field(
        default=20,
        title="Virtual tokens",
        ge=1,
        le=1024,
        description="Learned tokens before the text: more can hold more, and use context.",
    )
    prompt_tuning_init_text: str | None = Field(
        default=None,
        title="Words to start from",
        description="Prompt tuning starts from these words, such as Classify the ticket; empty starts from random words.",
    )
    encoder_hidden_size: int | None = Field(
        default=None,
        title="Width of the encoder",
        ge=1,
        le=65536,
        description="Width of the small network that makes the tokens (P-tuning, prefix with projection); empty takes the model's.",
    )
    prefix_projection: bool = Field(
        default=False,
        title="Make the prefix by a network",
        description="Prefix tuning: train through a small network, which is steadier and costs memory while training only.",
    )


class BottleneckSection(Config):
    """Bottleneck adapters after Houlsby et al. 2019 and Pfeiffer et al. 2020; names follow the library `adapters`."""

    reduction_factor: int = Field(
        default=8, title="Narrowing", ge=1, le=1024, description="How many times narrower than the model the learned layers are."
    )
    mh_adapter: bool = Field(
        default=False,
        title="Also behind attention (Houlsby)",
        description="Put one behind attention too (Houlsby); off keeps only the one behind the feed-forward layers (Pfeiffer).",
    )
    non_linearity: Literal["relu", "gelu", "silu"] = Field(
        default="relu", title="Activation", description="Function between the two layers of an adapter."
    )


class QuantizationSection(Config):
    """How the frozen base is stored; names follow transformers.BitsAndBytesConfig."""

    @property
    def bits(self) -> int:
        """Bits of a weight of the base."""
        if self.load_in_4bit:
            return 4
        if self.load_in_8bit:
            return 8
        return 16

    load_in_4bit: bool = Field(
        default=False, title="4-bit base (QLoRA)", description="Keep the base in 4 bits (QLoRA): a quarter of the memory, slightly slower."
    )
    load_in_8bit: bool = Field(
        default=False, title="8-bit base", description="Keep the base in 8 bits: half the memory of 16 bits, slower than 4 bits."
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        default="nf4", title="4-bit number format", description="4-bit number format; nf4 suits weights of trained models."
    )
    bnb_4bit_use_double_quant: bool = Field(
        default=True, title="Double quantisation", description="Quantise the quantisation constants too: saves 0.4 bit per weight."
    )
    bnb_4bit_compute_dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16",
        title="Arithmetic on the 4-bit base",
        description="Number format of the arithmetic on the 4-bit base; a processor without bfloat16 instructions takes float32.",
    )


class RopeSection(Config):
    """Rotary positions beyond the base's context; names and meanings follow transformers' rope_parameters."""

    @property
    def is_set(self) -> bool:
        """Whether anything is asked for."""
        return bool(self.chosen)

    @property
    def chosen(self) -> dict[str, str | float | list[float]]:
        """What differs from the defaults, by transformers' names."""
        return self.model_dump(mode="json", exclude_defaults=True)

    rope_type: Literal["default", "linear", "dynamic", "yarn", "llama3", "longrope"] = Field(
        default="default",
        title="Scaling of positions",
        description="How positions are scaled so that texts longer than the base's context can be learned and read: yarn suits most "
        "models; llama3 and longrope are for models that have them; default leaves positions as the base has them.",
    )
    factor: float | None = Field(
        default=None,
        title="Times the context",
        gt=1,
        le=1024,
        allow_inf_nan=False,
        description="How many times longer the context becomes, against the length that the base was first trained with.",
    )
    original_max_position_embeddings: int | None = Field(
        default=None,
        title="Original context",
        ge=1,
        le=1_048_576,
        description="The length in tokens that the base was first trained with; empty takes it from the base's config.json.",
    )
    attention_factor: float | None = Field(
        default=None,
        title="Attention factor",
        gt=0,
        le=100,
        allow_inf_nan=False,
        description="Scale of queries and keys with yarn and longrope; empty takes the value that belongs to the factor.",
    )
    beta_fast: float | None = Field(
        default=None,
        title="Fast boundary (YaRN)",
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="Rotations over the original context above which yarn leaves a dimension alone; empty for 32.",
    )
    beta_slow: float | None = Field(
        default=None,
        title="Slow boundary (YaRN)",
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="Rotations over the original context below which yarn stretches a dimension whole; empty for 1.",
    )
    low_freq_factor: float | None = Field(
        default=None,
        title="Low boundary (Llama 3)",
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="Rotations over the original context below which llama3 stretches a dimension whole; empty for 1.",
    )
    high_freq_factor: float | None = Field(
        default=None,
        title="High boundary (Llama 3)",
        gt=0,
        le=10_000,
        allow_inf_nan=False,
        description="Rotations over the original context above which llama3 leaves a dimension alone; empty for 4.",
    )
    short_factor: list[float] | None = Field(
        default=None,
        title="Short factors (LongRoPE)",
        max_length=4096,
        description="One divisor per frequency for texts within the original context; empty takes the base's own.",
    )
    long_factor: list[float] | None = Field(
        default=None,
        title="Long factors (LongRoPE)",
        max_length=4096,
        description="One divisor per frequency for texts beyond the original context; empty takes the base's own.",
    )
