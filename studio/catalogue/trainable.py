"""How many parameters a method trains, by the model's blocks: arithmetic on shapes. Names follow peft. Loads nothing."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from studio.catalogue.architecture import Block, Decoder, Experts, Linear

PROMPTS = ("prompt-tuning", "p-tuning", "prefix-tuning")
WHOLE = ("embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out")  # as large as the vocabulary


@dataclass(frozen=True)
class Trained:
    """What of each block a method adapts: everything, what IA3 scales, what these target_modules name, or nothing."""

    method: str = ""
    wanted: tuple[str, ...] = ()

    def linears(self, block: Block) -> tuple[Linear, ...]:
        if self.method == "full":
            return block.linears
        if self.method == "ia3":
            return tuple(linear for linear in block.linears if linear.ia3)
        return tuple(linear for linear in block.linears if self.method == "lora" and self._means(linear))

    def experts(self, block: Block) -> tuple[Experts, ...]:
        return tuple(expert for expert in block.experts if self.method == "lora" and self._means(expert))

    def _means(self, part: Linear | Experts) -> bool:
        """As peft matches names."""
        if ALL_LINEAR in self.wanted:
            return part.is_target
        return any(f".{part.name}".endswith(f".{name}") or f".{name}".endswith(f".{part.name}") for name in self.wanted)


@dataclass(frozen=True)
class Trainable:
    """`targets`: the layers of the blocks that are adapted."""

    parameters: int
    targets: Trained


def trainable(model: Decoder, job: JobConfig) -> Trainable:
    """What this job trains on this model."""
    targets = trained(model, job)
    if job.method == "lora":
        return Trainable(model.total(lambda block: _lora(block, job, targets)) + _saved(model, job), targets)
    if job.method == "full":  # a copy of everything; of embeddings and head one each, also where they are one tensor
        return Trainable(model.parameters + model.vocabulary * model.hidden * model.is_tied, targets)
    if job.method == "ia3":
        return Trainable(model.total(lambda block: sum(map(_scaled, targets.linears(block)))), targets)
    if job.method == "bottleneck":
        narrow = max(model.hidden // job.bottleneck.reduction_factor, 1)
        each = 2 * model.hidden * narrow + narrow + model.hidden
        return Trainable(model.layers * each * (1 + job.bottleneck.mh_adapter), targets)
    return Trainable(_prompt(model, job), targets)


def trained(model: Decoder, job: JobConfig) -> Trained:
    """The layers that this job adapts; all that LoRA takes where none has a name that it asks for."""
    if job.method != "lora":
        return Trained(job.method)
    wanted = job.lora.target_modules
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    found = Trained("lora", names)
    if any(found.linears(block) or found.experts(block) for block in model.blocks):
        return found
    return Trained("lora", (ALL_LINEAR,))


def _scaled(linear: Linear) -> int:
    return {"inputs": linear.rows, "outputs": linear.columns}[linear.ia3]


def _lora(block: Block, job: JobConfig, targets: Trained) -> int:
    linears, r = targets.linears(block), job.lora.r
    layers = sum(r * (linear.rows + linear.columns) + linear.columns * job.lora.use_dora for linear in linears)
    return layers + sum(r * expert.number * (expert.rows + expert.columns) for expert in targets.experts(block))


def _saved(model: Decoder, job: JobConfig) -> int:
    whole = job.lora.modules_to_save or []
    return sum(model.vocabulary * model.hidden for name in whole if name.rpartition(".")[2] in WHOLE)


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
