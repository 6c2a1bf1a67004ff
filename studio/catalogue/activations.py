"""What one batch keeps in memory: the tensors that the backward pass needs, block by block, and the tiles of the output layer.

The terms are what autograd saves of transformers' layers under peft, as its saved-tensor hooks list them; bytes per token unless
said otherwise. `size` is the bytes of a number in the arithmetic: 2 under bfloat16 or float16 autocast, 4 in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

from studio.catalogue.architecture import RESULTS, Block, Decoder, Linear
from studio.catalogue.trainable import PROMPTS, Trained
from studio.records import WeightKind

TILE_TOKENS, TILE_WORDS = 4096, 32768  # trl computes the output layer in tiles of at most this size
# bytes per number of a tile where no Triton kernel folds it: the tile, its float32 copy, log-probabilities, probabilities, gradients
TILE_BACKWARD = {2: 31, 4: 33}
TILE_FORWARD = {2: 15, 4: 17}
PYTHON_GELU = ("gelu_new", "gelu_fast", "gelu_python", "quick_gelu")  # written out in steps, each of which keeps its input


@dataclass(frozen=True)
class Setting:
    """How a batch is computed. `is_masked`: rows of unequal length, or packed ones, so attention gets a mask."""

    device: str
    size: int
    sequences: int
    length: int
    method: str
    rank: int
    targets: Trained
    dropout: float
    is_dora: bool
    is_quantized: bool
    is_masked: bool
    is_flash: bool = False
    is_eager: bool = False

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def copies_inputs(self) -> bool:
        """Whether every adapted layer keeps a copy of its input, made on the way to the adapter's float32 and back."""
        return self.method == "lora" and self.size == 2 and not (self.device == "cuda" and self.is_quantized)


def saved_by_block(model: Decoder, block: Block, at: Setting) -> int:
    """Bytes that one block keeps for the backward pass of the whole batch."""
    per_token = _norms(block, at) + _attention(model, block, at) + _feed_forward(model, block, at) + _adapters(model, block, at)
    per_token += at.size * block.kept_per_token
    targets = at.targets.linears(block)
    fixed = _casts(targets, at)
    if at.is_dora:
        fixed += sum(at.size * linear.rows**2 for linear in targets)  # peft multiplies by an identity matrix
    fixed += 2 * at.size * sum(expert.weights for expert in at.targets.experts(block))  # the update of every expert is written out
    return at.tokens * per_token + fixed


def _casts(targets: tuple[Linear, ...], at: Setting) -> int:
    """Trained weights of one block are float32: autocast keeps 16-bit copies of them for the backward pass."""
    if at.size != 2:
        return 0
    if at.method == "full":
        return sum(at.size * linear.weights for linear in targets)
    if at.method == "lora":
        return sum(at.size * at.rank * (linear.rows + linear.columns) for linear in targets)
    return 0


def boundary(model: Decoder, at: Setting) -> int:
    """Bytes kept of one block where it is computed again: its input."""
    return at.tokens * model.hidden * at.size


def block_backward(model: Decoder, block: Block, at: Setting) -> int:
    """Bytes of gradients alive at once inside a block, and of its largest layer's weights brought out of 4 or 8 bits."""
    widest = max((max(linear.rows, linear.columns) for linear in block.linears), default=model.hidden)
    widest = max([widest, *(min(expert.rows, expert.columns) for expert in block.experts)])
    flows = 3 * at.size * widest + 2 * at.size * model.hidden
    if at.copies_inputs:
        flows += 4 * widest
    largest = 0
    if at.is_quantized or at.is_dora:
        largest = max((linear.weights for linear in block.linears), default=0)
    if at.is_quantized:
        largest = max([largest, *(expert.weights for expert in block.experts)])
    return at.tokens * flows + largest * at.size


def block_forward(model: Decoder, block: Block, at: Setting) -> int:
    """Bytes of one block while nothing is kept, as in an evaluation."""
    inner = sum(linear.columns for linear in block.linears if linear.rows == model.hidden)
    return at.tokens * (at.size * (inner + 2 * model.hidden) + 4 * model.hidden)


def head_backward(model: Decoder, at: Setting) -> int:
    """Bytes of the output layer at its dearest moment, the gradient of one tile, with the hidden states around it."""
    tile = _tile(model, at)
    hidden = at.tokens * model.hidden * (4 + 3 * at.size)
    if at.method == "full":
        hidden += 4 * model.vocabulary * model.hidden  # the gradient of a head that learns
    if at.device == "cuda":  # a Triton kernel turns the tile into its gradient in place
        return 2 * tile + hidden
    backward, forward, weights = TILE_BACKWARD[at.size], 4, 0
    if model.probe.logit_softcap:
        backward += 4  # the tangent that bends the logits
    if at.size == 2:
        forward, weights = at.size + 4, min(model.vocabulary, TILE_WORDS) * model.hidden * 4
    return max(backward * tile, forward * tile + weights) + hidden


def head_forward(model: Decoder, at: Setting) -> int:
    each = TILE_FORWARD[at.size]
    if at.device == "cuda":
        each = 2
    return each * _tile(model, at) + at.tokens * model.hidden * 2 * at.size


def whole_logits(model: Decoder, at: Setting) -> int:
    """Bytes where logits are not tiled (ORPO): the logits, their gradient, a float32 copy of the better half and its softmax."""
    numbers = at.tokens * model.vocabulary
    return numbers * (2 * at.size + 4) + numbers // 2 * 8


def _tile(model: Decoder, at: Setting) -> int:
    return min(at.tokens, TILE_TOKENS) * min(model.vocabulary, TILE_WORDS)


def _norms(block: Block, at: Setting) -> int:
    """An RMSNorm keeps its input in float32, a LayerNorm as it comes."""
    each = 4
    if block.norm_bias:
        each = at.size
    if at.method == "full":
        each += 4
    return each * sum(block.norms)


def _attention(model: Decoder, block: Block, at: Setting) -> int:
    query, kv = block.query_width, block.kv_width
    if not query:
        return 0
    is_flash = at.is_flash and not at.is_eager
    written_out = at.is_eager or (model.is_eager and not is_flash)
    if at.device == "cpu" and model.drops_attention > 0 and not written_out:
        return at.size * 2 * query + 4 * 3 * query + 12 * model.heads * at.length  # no fused kernel drops on a processor
    if written_out:
        per_score = 4
        if model.probe.attention_softcap:
            per_score += 2 * at.size
        elif at.size == 2:
            per_score += at.size
        return at.size * 4 * query + per_score * model.heads * at.length
    repeated, mask = 2 * kv, 0
    if at.is_masked and not is_flash:
        repeated, mask = 2 * query, at.size * at.length
    return at.size * (2 * query + repeated) + 4 * model.heads + mask


def _feed_forward(model: Decoder, block: Block, at: Setting) -> int:
    per_token = 0
    if block.experts:
        width = min(min(expert.rows, expert.columns) for expert in block.experts)
        per_token += at.size * block.active_experts * (2 * model.hidden + 4 * width)
    for kind in (WeightKind.MLP, WeightKind.SHARED_EXPERTS):
        per_token += _dense(model, block.of(kind), at)
    return per_token


def _dense(model: Decoder, layers: tuple[Linear, ...], at: Setting) -> int:
    """What lies between the layers that read the hidden states and the one that writes them."""
    inner = sum(linear.rows for linear in layers if linear.columns == model.hidden and linear.rows != model.hidden)
    if not inner:
        inner = max((linear.rows for linear in layers if linear.columns == model.hidden), default=0)
    read = sum(linear.columns for linear in layers if linear.rows == model.hidden)
    if read > inner:  # a gate beside it
        return at.size * 3 * inner
    if model.probe.activation in PYTHON_GELU:
        return at.size * 4 * inner
    return at.size * inner


def _adapters(model: Decoder, block: Block, at: Setting) -> int:
    """Inputs that the adapted (or, in full training, all) layers need for their own gradient."""
    targets = at.targets.linears(block)
    if at.method in PROMPTS:
        return 0
    if at.method == "bottleneck":
        return 2 * (4 * model.hidden + at.size * model.hidden)
    if at.method == "ia3":
        return at.size * sum(min(linear.rows, linear.columns) for linear in targets)
    per_token = 0
    if at.method == "lora":
        per_token = at.size * at.rank * len(targets)
    if at.copies_inputs or (at.method == "full" and at.size == 2):
        per_token += sum(at.size * linear.rows for linear in targets)
    else:
        into = {linear.rows for linear in targets if _is_inner(linear, model)}
        reads_states = sum(1 for linear in targets if linear.rows == model.hidden and linear.name.rpartition(".")[2] not in RESULTS)
        per_token += at.size * model.hidden * min(reads_states, 2) + at.size * sum(into)
    if at.dropout:
        per_token += sum({"cuda": 1, "cpu": 4}[at.device] * linear.rows for linear in targets)
        if not at.copies_inputs:
            per_token += sum(at.size * linear.rows for linear in targets)
    if at.is_dora:
        per_token += sum(2 * at.size * linear.columns for linear in targets)
    return per_token


def _is_inner(linear: Linear, model: Decoder) -> bool:
    """Whether it reads what a feed-forward part has computed."""
    return linear.columns == model.hidden and linear.kind in (WeightKind.MLP, WeightKind.SHARED_EXPERTS)
