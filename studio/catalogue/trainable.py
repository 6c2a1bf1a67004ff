"""How many parameters a method trains, by the model's blocks: arithmetic on shapes. Names follow peft. Loads nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jobs.config import JobConfig
from jobs.sections import ALL_LINEAR
from studio.catalogue.architecture import Block, Decoder, Experts, Linear

PROMPTS = ("prompt-tuning", "p-tuning", "prefix-tuning")
EMBEDDINGS = ("embed_tokens", "wte", "embed_in", "word_embeddings")
WHOLE = (*EMBEDDINGS, "lm_head", "embed_out")  # as large as the vocabulary


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
class TrainedTensors:
    """`number` tensors of `size` parameters each. Embeddings have an optimizer's states in 32 bits whatever it is (transformers)."""

    size: int
    number: int = 1
    is_embedding: bool = False


@dataclass(frozen=True)
class Trainable:
    """`targets`: the layers of the blocks that are adapted. `tensors` have all of the parameters."""

    parameters: int
    targets: Trained
    tensors: tuple[TrainedTensors, ...]


def trainable(model: Decoder, job: JobConfig) -> Trainable:
    """What this job trains on this model."""
    targets = trained(model, job)
    makers = {"lora": _lora, "full": _whole, "ia3": _scales, "bottleneck": _bottleneck}
    tensors = tuple(one for one in makers.get(job.method, _prompt)(model, job, targets) if one.size and one.number)
    return Trainable(sum(one.size * one.number for one in tensors), targets, tensors)


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


def _scales(model: Decoder, job: JobConfig, targets: Trained) -> Iterator[TrainedTensors]:
    for block in model.blocks:
        for linear in targets.linears(block):
            yield TrainedTensors({"inputs": linear.rows, "outputs": linear.columns}[linear.ia3], block.count)


def _lora(model: Decoder, job: JobConfig, targets: Trained) -> Iterator[TrainedTensors]:
    r = job.lora.r
    for block in model.blocks:
        for linear in targets.linears(block):
            yield TrainedTensors(r * linear.rows, block.count)
            yield TrainedTensors(r * linear.columns, block.count)
            yield TrainedTensors(linear.columns * job.lora.use_dora, block.count)
        for expert in targets.experts(block):  # of all experts in one tensor
            yield TrainedTensors(r * expert.number * expert.rows, block.count)
            yield TrainedTensors(r * expert.number * expert.columns, block.count)
    for name in job.lora.modules_to_save or []:
        if (end := name.rpartition(".")[2]) in WHOLE:
            yield TrainedTensors(model.vocabulary * model.hidden, is_embedding=end in EMBEDDINGS)


def _whole(model: Decoder, job: JobConfig, targets: Trained) -> Iterator[TrainedTensors]:
    """A copy of everything; of embeddings and head one each, also where they are one tensor."""
    matrices = [TrainedTensors(one.weights, block.count) for block in model.blocks for one in block.linears]
    matrices += [TrainedTensors(one.weights, block.count) for block in model.blocks for one in block.experts]
    table = TrainedTensors(model.vocabulary * model.hidden, is_embedding=True)
    head = TrainedTensors(table.size)
    yield from (*matrices, table, head)
    known = sum(one.size * one.number for one in (*matrices, table, head))
    rest = model.parameters + table.size * model.is_tied - known  # norms and biases
    yield TrainedTensors(model.hidden, rest // max(model.hidden, 1))
    yield TrainedTensors(rest % max(model.hidden, 1))


def _bottleneck(model: Decoder, job: JobConfig, targets: Trained) -> Iterator[TrainedTensors]:
    narrow, places = max(model.hidden // job.bottleneck.reduction_factor, 1), model.layers * (1 + job.bottleneck.mh_adapter)
    yield TrainedTensors(model.hidden * narrow, 2 * places)
    yield TrainedTensors(narrow, places)
    yield TrainedTensors(model.hidden, places)


def _prompt(model: Decoder, job: JobConfig, targets: Trained) -> Iterator[TrainedTensors]:
    tokens, hidden = job.prompt.num_virtual_tokens, model.hidden
    width = job.prompt.encoder_hidden_size or hidden
    deep = model.layers * 2 * model.kv_width
    sizes: tuple[int, ...] = ()
    if job.method == "prompt-tuning":
        table = tokens * hidden
    elif job.method == "p-tuning":
        table, sizes = tokens * hidden, (hidden * width, width * width, width * hidden, width, width, hidden)
    elif job.prompt.prefix_projection:  # peft makes the prefix as wide as a key
        table, sizes = tokens * model.kv_width, (model.kv_width * width, width * deep, width, deep)
    else:
        table = tokens * deep
    yield TrainedTensors(table, is_embedding=True)
    yield from map(TrainedTensors, sizes)
