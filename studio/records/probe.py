"""What a base model can do, as transformers and peft say it of the model that its config.json describes."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field

from studio.records.base import Record


class WeightKind(StrEnum):
    """What a weight of a model is for."""

    ATTENTION = "attention"  # queries, keys, values and their output
    MLP = "mlp"  # the dense feed-forward layers
    EXPERTS = "experts"  # the feed-forward layers between which a router chooses
    SHARED_EXPERTS = "shared_experts"  # those beside them that every token passes
    ROUTER = "router"  # chooses between experts
    CONVOLUTION = "convolution"  # short convolutions, with the layers around them
    STATE_SPACE = "state_space"  # state space and linear attention blocks
    NORM = "norm"  # scales of normalisations
    EMBEDDINGS = "embeddings"  # of tokens and positions
    HEAD = "head"  # the output layer, where it is not the embeddings
    VISION = "vision"  # reads images, and brings them to the text's width
    AUDIO = "audio"  # reads sound
    OTHER = "other"


class WeightForm(StrEnum):
    """How a weight is stored in its model."""

    LINEAR = "linear"  # a layer of its own: bitsandbytes and LoRA reach it
    EXPERTS = "experts"  # all experts of a block in one 3-D tensor
    CONVOLUTION = "convolution"
    OTHER = "other"  # a tensor that its block uses itself


class BlockWeight(Record):
    """One weight matrix of a block."""

    name: str  # within its block
    kind: WeightKind
    form: WeightForm
    rows: int  # inputs
    columns: int  # outputs
    number: int = 1  # experts
    bias: int = 0  # parameters
    target: bool  # LoRA's default targets reach it
    ia3: str = ""  # what IA3's default scales: its "inputs", its "outputs", or nothing of it
    quantizable: bool = False  # bitsandbytes keeps it in 4 or 8 bits

    @property
    def weights(self) -> int:
        return self.rows * self.columns * self.number


class BlockKind(Record):
    """Blocks that have the same weights. Sizes are of one block."""

    layers: list[int]  # their places
    weights: list[BlockWeight]
    norms: list[int] = []  # numbers that each norm puts out for a token
    norm_bias: bool = False
    parameters: int
    active_experts: int = 0  # that a token passes
    cache_per_token: int = 0  # numbers that a token leaves in the cache
    state: int = 0  # numbers of a row's recurrent state, whatever its length
    kept_per_token: int = 0  # numbers that state spaces and convolutions keep of a token for the backward pass


class Reach(Record):
    """What a method trains of the matrices in the text model's blocks."""

    share: float  # 0 to 1
    left_out: dict[WeightKind, float] = {}  # kind -> its share of all of them; a kind that is left out in part counts that part
    accepted: bool = True  # peft makes this adapter for this model
    reason: str = ""  # why not


class Targets(Reach):
    """LoRA with target_modules=all-linear, as a training here understands it: the text model's linear layers and fused experts."""

    modules: list[str] = []  # ends of the names of linear layers in the blocks
    parameters: list[str] = []  # fused experts, within a block
    refused: list[str] = []  # linear layers that peft takes in no model of this type
    bypassed: list[str] = []  # those that no gradient reaches: a LoRA there would learn nothing


class Probe(Record):
    """What is true of a model. Made without weights; made again when transformers, peft or the probe change."""

    model_config = ConfigDict(serialize_by_alias=True, populate_by_name=True)

    digest: str  # of the config.json, the libraries and the probe's own version: all that it depends on
    transformers: str
    peft: str
    class_name: str = Field(alias="class")  # that transformers builds
    auto_class: str  # by which it is loaded
    model_type: str
    text_prefix: str  # module of the text model, "" where the model is nothing else
    attention: list[str]  # implementations that the class supports
    targets: Targets
    methods: dict[str, Reach]  # other methods, with their own defaults
    mixable: bool  # rows with different adapters can share a batch
    mixable_reason: str = ""  # why they can't
    padding: str  # "left": rows of different lengths can share a batch, padded on the left; "" where padding changes answers
    cache: str  # class of the cache that generation uses
    cache_layers: dict[str, int]  # kind of cache -> layers
    croppable: bool  # the cache can forget its last tokens
    context: int  # tokens; 0 where the config does not say
    tied: bool  # embeddings and output layer are one tensor
    parameters: int
    parameters_by_kind: dict[WeightKind, int]
    hidden: int
    heads: int
    kv_heads: int
    head_width: int
    intermediate: int
    vocabulary: int
    activation: str
    attention_dropout: float
    attention_softcap: bool = False  # attention scores are bent
    logit_softcap: bool = False  # logits are bent
    quantizable: int  # weights that bitsandbytes keeps in 4 or 8 bits
    quantizable_columns: int  # of these, for which 8 bits keep a scale each
    blocks: list[BlockKind]

    @property
    def layers(self) -> int:
        return sum(len(block.layers) for block in self.blocks)
