"""What a job will need, from the model's config.json alone: arithmetic on its probe, no torch. Knows nothing of what else runs here.

The peak is the dearest of a few moments: reading the weights, the output layer's gradient, a block's gradient, the optimizer's step,
an evaluation. Sizes are those of the model that transformers builds from the config. Bytes throughout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from studio.catalogue import activations as acts
from studio.catalogue import hardware, rope
from studio.catalogue.activations import Setting
from studio.catalogue.architecture import Decoder, decoder, sees_whole_rows
from studio.catalogue.trainable import PROMPTS, Trainable, trainable

BLOCK, NESTED_BLOCK = 64, 256  # weights per quantisation constant, constants per second-order constant
BYTES_4BIT = (4 + 8 / BLOCK + 32 / (BLOCK * NESTED_BLOCK)) / 8  # NF4 with double quantisation
BYTES_4BIT_SINGLE = (4 + 32 / BLOCK) / 8
CPU_PROCESS = 520_000_000  # torch, transformers, peft and trl, imported: not counted in a prediction, but in its margin
# on a processor, what the first step adds once: pages of the libraries' code (30 MB as measured), scratch space of the matrix
# products and small blocks in the heap
CPU_SLACK = 75_000_000
CPU_FRAGMENTED = 0.02  # of what comes and goes: larger blocks go back to the system at once (see jobs.trainers.base)
CPU_KEPT = 0.25  # the same where freed memory is kept for the next step: faster, and what a training does unless memory is short
CUDA_CONTEXT = 530_000_000  # the driver's context, cuBLAS's workspace
# of what comes and goes, on CUDA: blocks that fit nothing else, and the ends of segments where these can grow
FRAGMENTED = {False: 0.05, True: 0.02}[hardware.has_expandable_segments()]
# device -> what the first step adds once, the share of what comes and goes that is lost to gaps, the process's own memory
EXTRAS = {"cpu": (CPU_SLACK, CPU_FRAGMENTED, CPU_PROCESS), "cuda": (CUDA_CONTEXT, FRAGMENTED, 0)}
CHECKPOINT_SLACK = 10_000_000  # states and cards beside the tensors
FULL_PRECISION_GRADIENT = 4
# bytes per trained parameter; paged ones move to main memory when the device is full, so they need no room of their own there (`states`)
OPTIMIZER_BYTES = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "lion_8bit": 1, "lion_32bit": 4,
    "ademamix": 12, "ademamix_8bit": 3, "adafactor": 0.1, "sgd": 0, "adagrad": 4, "rmsprop": 4, "rmsprop_bnb": 4,
    "rmsprop_bnb_8bit": 1, "rmsprop_bnb_32bit": 4, "paged_adamw_32bit": 8, "paged_adamw_8bit": 2, "paged_lion_8bit": 1,
    "paged_lion_32bit": 4, "paged_ademamix_8bit": 3, "paged_ademamix_32bit": 12,
}  # fmt: skip
LEAST_PAGED, LEAST_8_BIT = 100_000, 4096  # parameters of a tensor from which on bitsandbytes pages its states, or keeps 8 bits of them
LEAST_SHARE = 0.005  # of the weights: less is not spoken of
PARTS = ("base_weights", "full_precision_weights", "adapter", "optimizer", "activations", "logits", "overhead")


@dataclass(frozen=True)
class Prediction:
    """`parts` add up to `total`. `process` is what an imported trainer takes beside it on a processor; `paged` may move to the host."""

    parts: dict[str, int]
    process: int
    paged: int
    trained: int  # parameters
    moment: str
    notes: tuple[str, ...] = field(default=())

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Moment:
    """Bytes beyond what is there all the time."""

    name: str
    activations: int = 0
    logits: int = 0
    adapter: int = 0
    overhead: int = 0

    @property
    def total(self) -> int:
        return self.activations + self.logits + self.adapter + self.overhead


def model_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def adapter_parameters(config: dict[str, Any], job: JobConfig) -> int:
    return trainable(decoder(config), job).parameters


def predict_disk_bytes(config: dict[str, Any], job: JobConfig) -> int:
    """Checkpoints at their most (one more while it is written), each adapter + two optimizer states in 32 bit, and the result."""
    adapter = 4 * adapter_parameters(config, job)
    checkpoint = 3 * adapter
    return (job.save_total_limit + 1) * checkpoint + adapter + CHECKPOINT_SLACK


def predict_training_bytes(config: dict[str, Any], job: JobConfig) -> int:
    """Peak memory of the whole training process on its device."""
    found = predict(config, job)
    return found.total + found.process


def predict(
    config: dict[str, Any], job: JobConfig, *, device: str | None = None, size: int | None = None, gives_back: bool = True
) -> Prediction:
    """Peak memory of `job` on `device` (cuda or cpu; None: the job's own, else this machine's).

    `size`: bytes of a number in the arithmetic; None asks this machine, 2 on a GPU. `gives_back`: on a processor, the least that it
    takes, where freed memory goes back at once (see jobs.trainers.base). Raises ModelError for a config of no decoder.
    """
    device = device or device_of(job)
    size = size or number_bytes(device, job)
    model = decoder(config, context=rope.longer(config, job.rope))
    trained = trainable(model, job)
    setting = batch(model, job, trained, device, size, config)
    parts = dict.fromkeys(PARTS, 0)
    parts["base_weights"], parts["full_precision_weights"] = weights(model, job, size)
    parts["adapter"] = 4 * trained.parameters
    parts["optimizer"], paged = states(job.optim, trained, device)
    kept = sum(parts.values())
    dearest = max(moments(model, job, trained, setting, kept), key=lambda moment: moment.total)
    parts["activations"] += dearest.activations
    parts["logits"] += dearest.logits
    parts["adapter"] += dearest.adapter
    once, share, process = EXTRAS[device]
    if device == "cpu" and not gives_back:
        share = CPU_KEPT
    parts["overhead"] = dearest.overhead + once + round(share * (dearest.total - dearest.overhead))
    return Prediction(parts, process, paged, trained.parameters, dearest.name, notes(model, job))


def states(optim: str, trained: Trainable, device: str) -> tuple[int, int]:
    """Bytes of the optimizer's states that stay on the device, and of those that may move to main memory.

    As bitsandbytes does: small tensors are not paged, even smaller ones have states of 32 bits where others have 8, and embeddings too.
    """
    each = OPTIMIZER_BYTES[optim]
    kept = paged = 0.0
    for one in trained.tensors:
        wider = 1
        if "8bit" in optim and (one.is_embedding or one.size < LEAST_8_BIT):
            wider = 4
        taken = wider * each * one.size * one.number
        if optim.startswith("paged_") and device == "cuda" and one.size >= LEAST_PAGED:
            paged += taken
        else:
            kept += taken
    return round(kept), round(paged)


def device_of(job: JobConfig) -> str:
    """Where this job would train: as it says, else the device of this machine."""
    if job.device != "auto":
        return job.device
    return hardware.devices()[0].kind


def number_bytes(device: str, job: JobConfig | None = None) -> int:
    """Bytes of a number in the arithmetic there; of `job`, which may choose its own."""
    if job is not None and job.dtype != "auto":
        return {"float32": 4}.get(job.dtype, 2)
    if device == "cuda":
        return 2
    return hardware.cpu_number_bytes()


def weights(model: Decoder, job: JobConfig, size: int) -> tuple[int, int]:
    """Bytes of the layers that can be quantised, and of what stays whole: embeddings, head, norms, experts."""
    quantization = job.quantization
    per_weight: float = size
    scales = 0
    if quantization.load_in_4bit and quantization.bnb_4bit_use_double_quant:
        per_weight = BYTES_4BIT
    elif quantization.load_in_4bit:
        per_weight = BYTES_4BIT_SINGLE
    elif quantization.load_in_8bit:
        per_weight = 1.0
        scales = 4 * model.probe.quantizable_columns
    small = model.linear_parameters
    if quantization.load_in_4bit:
        small += model.expert_parameters
    return round(small * per_weight) + scales, (model.parameters - small) * size


def batch(model: Decoder, job: JobConfig, trained: Trainable, device: str, size: int, config: dict[str, Any]) -> Setting:
    """The batch of the longest rows that this job may meet."""
    length = min(job.max_length, model.context or job.max_length)
    is_apart = (
        job.attn_implementation in ("auto", "sdpa") and not model.is_eager and sees_whole_rows(config, length)
    )  # see jobs.trainers.packed
    sequences = job.per_device_train_batch_size * job.objective_entry.computed_together
    if job.packing:  # trl puts the rows of a packed batch behind each other in one sequence
        length, sequences = length * sequences, 1
    if job.method in PROMPTS:
        length += job.prompt.num_virtual_tokens
    rank, dropout = 0, 0.0
    if lora := job.method == "lora":
        rank, dropout = job.lora.r, job.lora.lora_dropout
    return Setting(
        device=device,
        size=size,
        sequences=sequences,
        length=length,
        method=job.method,
        rank=rank,
        targets=trained.targets,
        dropout=dropout,
        is_dora=lora and job.lora.use_dora,
        is_quantized=job.quantization.load_in_4bit or job.quantization.load_in_8bit,
        is_masked=sequences > 1 or (job.packing and not is_apart),
        is_flash=job.attn_implementation == "flash_attention_2",
        is_eager=job.attn_implementation == "eager",
    )


def moments(model: Decoder, job: JobConfig, trained: Trainable, at: Setting, kept: int) -> list[Moment]:
    """When memory may be at its highest. `kept`: bytes that are there throughout the training."""
    block = model.most(lambda one: acts.saved_by_block(model, one, at))
    stored, computed_again = model.total(lambda one: acts.saved_by_block(model, one, at)), 0
    if job.gradient_checkpointing:
        stored, computed_again = model.layers * acts.boundary(model, at), block
    stored += 4 * at.tokens * model.hidden
    flows = model.most(lambda one: acts.block_backward(model, one, at))
    gradients = FULL_PRECISION_GRADIENT * trained.parameters
    at_head = gradients * (job.gradient_accumulation_steps > 1)
    head = acts.head_backward(model, at)
    if job.objective_entry.has_whole_logits:
        head = acts.whole_logits(model, at)
    inside = stored + flows + computed_again
    below = block + flows
    stacked = gradients * (at.device == "cuda" and job.optim == "adamw_torch")  # that optimizer lays all of them side by side
    found = [
        Moment("output layer", activations=stored, logits=head, adapter=at_head),
        Moment("backward pass", activations=inside, logits=at.tokens * model.hidden * 4, adapter=at_head + gradients // model.layers),
        Moment("end of the backward pass", activations=below, adapter=gradients),
        Moment("optimizer step", adapter=gradients, overhead=stacked),
    ]
    if job.test_size > 0:
        found.append(_evaluation(model, job, at))
    if at.device == "cpu":
        read = _reading(model, job, at.size) - kept
        found.append(Moment("reading the weights", overhead=max(read, 0)))
    return found


def _evaluation(model: Decoder, job: JobConfig, at: Setting) -> Moment:
    length = at.length
    if job.packing:  # rows are not packed while evaluating
        length //= job.per_device_train_batch_size
    held = replace(at, sequences=job.per_device_eval_batch_size * job.objective_entry.computed_together, length=length)
    logits = acts.head_forward(model, held)
    if job.objective_entry.has_whole_logits:
        logits = held.tokens * model.vocabulary * (at.size + 4)
    return Moment("evaluation", activations=model.most(lambda one: acts.block_forward(model, one, held)), logits=logits)


def _reading(model: Decoder, job: JobConfig, size: int) -> int:
    """The base as it is kept, beside the pages of its files, which count as this process's until they are read."""
    return sum(weights(model, job, size)) + 2 * model.parameters


def notes(model: Decoder, job: JobConfig) -> tuple[str, ...]:
    """What a person should know of a prediction."""
    return tuple(note for note in (_whole_note(model, job.quantization.bits), job.objective_entry.memory_note) if note)


def _whole_note(model: Decoder, bits: int) -> str:
    """What stays in 16 bits of the blocks of a base that is kept in fewer."""
    if bits > 8 or (share := model.whole_share(bits)) < LEAST_SHARE:
        return ""
    return f"In {bits} bits, {share:.0%} of the weights of its blocks stay in 16 bits: bitsandbytes reaches only some layers of this model."
