"""How many parameters a method trains, by the model's structure: arithmetic on shapes. Names follow peft. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config import JobConfig
from studio.catalogue.architecture import Decoder, Linear

PROMPTS = ("prompt-tuning", "p-tuning", "prefix-tuning")
# what IA3 scales where it chooses itself: keys, values and the input of the last feed-forward layer, by the names in use
IA3_NAMES = ("k_proj", "v_proj", "query_key_value", "qkv_proj", "c_attn", "Wqkv")
LAST_FEED_FORWARD = ("down_proj", "dense_4h_to_h", "fc2", "fc_out", "mlp.c_proj", "c_proj")
WHOLE = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out")  # as large as the vocabulary


@dataclass(frozen=True)
class Trainable:
    """`targets`: the linear layers of a block that are adapted; `wraps_experts`: its experts too."""

    parameters: int
    targets: tuple[Linear, ...]
    wraps_experts: bool = False


def trainable(model: Decoder, job: JobConfig) -> Trainable:
    """What this job trains on this model."""
    if job.method == "lora":
        return _lora(model, job)
    if job.method == "full":  # a copy of everything; of embeddings and head one each, also where they are one tensor
        return Trainable(model.parameters + model.vocabulary * model.hidden * model.is_tied, model.linears)
    if job.method == "ia3":
        scaled = tuple(linear for linear in model.linears if linear.name in IA3_NAMES + LAST_FEED_FORWARD)
        widths = (linear.rows if linear.name in LAST_FEED_FORWARD else linear.columns for linear in scaled)
        return Trainable(model.layers * sum(widths), scaled)
    if job.method == "bottleneck":
        narrow = max(model.hidden // job.bottleneck.reduction_factor, 1)
        each = 2 * model.hidden * narrow + narrow + model.hidden
        return Trainable(model.layers * each * (1 + job.bottleneck.mh_adapter), ())
    return Trainable(_prompt(model, job), ())


def targeted(model: Decoder, wanted: str | list[str]) -> tuple[Linear, ...]:
    """The layers of a block that target_modules means, as peft matches names; all where none has such a name."""
    if wanted == "all-linear" or "all-linear" in wanted:
        return model.linears
    names = [wanted] if isinstance(wanted, str) else wanted
    ends = {name.rpartition(".")[2] for name in names}
    found = tuple(linear for linear in model.linears if linear.name in names or linear.name.rpartition(".")[2] in ends)
    return found or model.linears


def _lora(model: Decoder, job: JobConfig) -> Trainable:
    targets, r = targeted(model, job.lora.target_modules), job.lora.r
    block = sum(r * (linear.rows + linear.columns) + linear.columns * job.lora.use_dora for linear in targets)
    wraps = model.experts is not None and model.experts.is_wrapped and targets == model.linears
    if model.experts and wraps:  # one pair of matrices per expert; the two halves of gate_up share a tensor and take twice the rank
        expert = model.experts
        block += expert.number * r * (2 * (expert.hidden + 2 * expert.width) + expert.width + expert.hidden)
    whole = job.lora.modules_to_save or []
    saved = sum(model.vocabulary * model.hidden for name in whole if name.rpartition(".")[2] in WHOLE)
    return Trainable(model.layers * block + saved, targets, wraps)


def _prompt(model: Decoder, job: JobConfig) -> int:
    tokens, hidden = job.prompt.num_virtual_tokens, model.hidden
    width = job.prompt.encoder_hidden_size or hidden
    if job.method == "prompt-tuning":
        return tokens * hidden
    if job.method == "p-tuning":
        return tokens * hidden + hidden * width + width * width + width * hidden + 2 * width + hidden
    deep = model.layers * 2 * model.kv_width
    if job.prompt.prefix_projection:  # peft makes the prefix as wide as a key
        return tokens * model.kv_width + model.kv_width * width + width * deep + width + deep
    return tokens * deep
