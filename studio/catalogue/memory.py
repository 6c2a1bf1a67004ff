"""What a job will need, from the model's config.json alone: arithmetic, no torch. Knows nothing of what else runs here.

The peak is the dearest of a few moments: reading the weights, the output layer's gradient, a block's gradient, the optimizer's step,
an evaluation. Sizes follow the shapes that transformers builds; an architecture that is not known is read as if it were like Llama,
and the prediction says so. Bytes throughout.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jobs.config import JobConfig
from studio.catalogue import activations as acts
from studio.catalogue import hardware
from studio.catalogue.activations import Setting
from studio.catalogue.architecture import Decoder, decoder, sees_whole_rows, text_config
from studio.catalogue.trainable import Trainable, trainable

BLOCK, NESTED_BLOCK = 64, 256  # weights per quantisation constant, constants per second-order constant
BYTES_4BIT = (4 + 8 / BLOCK + 32 / (BLOCK * NESTED_BLOCK)) / 8  # NF4 with double quantisation
BYTES_4BIT_SINGLE = (4 + 32 / BLOCK) / 8
CPU_PROCESS = 520_000_000  # torch, transformers, peft and trl, imported: not counted in a prediction, but in its margin
# on a processor, what the first step adds once: pages of the libraries' code (30 MB as measured), scratch space of the matrix
# products and small blocks in the heap
CPU_SLACK = 75_000_000
CPU_FRAGMENTED = 0.02  # of what comes and goes: larger blocks go back to the system at once (see jobs.trainers.base)
CUDA_CONTEXT = 530_000_000  # the driver's context, cuBLAS's workspace
FRAGMENTED = 0.05  # of what comes and goes, on CUDA: blocks that fit nothing else
FULL_PRECISION_GRADIENT = 4
# bytes per trained parameter; paged ones move to main memory when the device is full, so they need no room of their own there
OPTIMIZER_BYTES = {
    "adamw_torch": 8, "adamw_torch_fused": 8, "adamw_8bit": 2, "adamw_bnb_8bit": 2, "lion_8bit": 1, "lion_32bit": 4,
    "ademamix": 12, "ademamix_8bit": 3, "adafactor": 0.1, "sgd": 0, "adagrad": 4, "rmsprop": 4, "rmsprop_bnb": 4,
    "rmsprop_bnb_8bit": 1, "rmsprop_bnb_32bit": 4, "paged_adamw_32bit": 8, "paged_adamw_8bit": 2, "paged_lion_8bit": 1,
    "paged_lion_32bit": 4, "paged_ademamix_8bit": 3, "paged_ademamix_32bit": 12,
}  # fmt: skip
PARTS = ("base_weights", "full_precision_weights", "adapter", "optimizer", "activations", "logits", "overhead")
PAIRED = ("dpo", "orpo")  # objectives that compute the better and the worse answer of each row together


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
    """config.json of a model folder; of the text part where a model has several."""
    return text_config(json.loads((folder / "config.json").read_text(encoding="utf-8")))


def adapter_parameters(config: dict[str, Any], job: JobConfig) -> int:
    return trainable(decoder(config), job).parameters


def predict_disk_bytes(config: dict[str, Any], job: JobConfig) -> int:
    """Checkpoints at their most (one more while it is written), each adapter + two optimizer states in 32 bit, and the result."""
    adapter = 4 * adapter_parameters(config, job)
    return (job.save_total_limit + 1) * 3 * adapter + adapter + 10_000_000


def predict_training_bytes(config: dict[str, Any], job: JobConfig) -> int:
    """Peak memory of the whole training process on its device."""
    found = predict(config, job)
    return found.total + found.process


def predict(config: dict[str, Any], job: JobConfig, *, device: str | None = None, size: int | None = None) -> Prediction:
    """Peak memory of `job` on `device` (cuda or cpu; None: the job's own, else this machine's).

    `size`: bytes of a number in the arithmetic; None asks this machine, 2 on a GPU. Raises ModelError for a config without sizes.
    """
    device = device or (job.device if job.device != "auto" else hardware.devices()[0].kind)
    size = size or (2 if device == "cuda" else hardware.cpu_number_bytes())
    model = decoder(config)
    trained = trainable(model, job)
    setting = batch(model, job, trained, device, size, config)
    parts = dict.fromkeys(PARTS, 0)
    parts["base_weights"], parts["full_precision_weights"] = weights(model, job, size)
    parts["adapter"] = 4 * trained.parameters
    states = round(OPTIMIZER_BYTES[job.optim] * trained.parameters)
    is_paged = job.optim.startswith("paged_") and device == "cuda"
    parts["optimizer"] = 0 if is_paged else states
    kept = sum(parts.values())
    dearest = max(moments(model, job, trained, setting, kept), key=lambda moment: moment.total)
    parts["activations"] += dearest.activations
    parts["logits"] += dearest.logits
    parts["adapter"] += dearest.adapter
    fixed, share = (CPU_SLACK, CPU_FRAGMENTED) if device == "cpu" else (CUDA_CONTEXT, FRAGMENTED)
    parts["overhead"] = dearest.overhead + fixed + round(share * (dearest.total - dearest.overhead))
    process = CPU_PROCESS if device == "cpu" else 0
    return Prediction(parts, process, states if is_paged else 0, trained.parameters, dearest.name, notes(model, job))


def weights(model: Decoder, job: JobConfig, size: int) -> tuple[int, int]:
    """Bytes of the layers that can be quantised, and of what stays whole: embeddings, head, norms, experts."""
    quantization = job.quantization
    per_weight: float = size
    if quantization.load_in_4bit:
        per_weight = BYTES_4BIT if quantization.bnb_4bit_use_double_quant else BYTES_4BIT_SINGLE
    elif quantization.load_in_8bit:
        per_weight = 1.0
    rows = sum(linear.columns for linear in model.linears) * model.layers
    scales = 4 * rows if quantization.load_in_8bit and not quantization.load_in_4bit else 0
    return round(model.linear_parameters * per_weight) + scales, (model.parameters - model.linear_parameters) * size


def batch(model: Decoder, job: JobConfig, trained: Trainable, device: str, size: int, config: dict[str, Any]) -> Setting:
    """The batch of the longest rows that this job may meet."""
    length = min(job.max_length, model.context or job.max_length)
    is_apart = job.attn_implementation == "sdpa" and sees_whole_rows(config, length)  # see jobs.trainers.packed
    sequences = job.per_device_train_batch_size * (2 if job.objective in PAIRED else 1)
    if job.packing:  # trl puts the rows of a packed batch behind each other in one sequence
        length, sequences = length * sequences, 1
    virtual = job.prompt.num_virtual_tokens if job.method in ("prompt-tuning", "p-tuning", "prefix-tuning") else 0
    lora = job.method == "lora"
    return Setting(
        device=device,
        size=size,
        sequences=sequences,
        length=length + virtual,
        method=job.method,
        rank=job.lora.r if lora else 0,
        targets=trained.targets,
        dropout=job.lora.lora_dropout if lora else 0.0,
        is_dora=lora and job.lora.use_dora,
        is_quantized=job.quantization.load_in_4bit or job.quantization.load_in_8bit,
        is_masked=sequences > 1 or (job.packing and not is_apart),
        is_flash=job.attn_implementation == "flash_attention_2",
        is_eager=job.attn_implementation == "eager",
        wraps_experts=trained.wraps_experts,
        activation=str(text_config(config).get("hidden_act") or text_config(config).get("activation_function") or _usual_activation(model)),
    )


def moments(model: Decoder, job: JobConfig, trained: Trainable, at: Setting, kept: int) -> list[Moment]:
    """When memory may be at its highest. `kept`: bytes that are there throughout the training."""
    block = acts.saved_by_layer(model, at)
    recomputes = job.gradient_checkpointing
    stored = model.layers * (acts.boundary(model, at) if recomputes else block) + 4 * at.tokens * model.hidden
    gradients = FULL_PRECISION_GRADIENT * trained.parameters
    at_head = gradients if job.gradient_accumulation_steps > 1 else 0
    head = acts.whole_logits(model, at) if job.objective == "orpo" else acts.head_backward(model, at)
    inside = stored + acts.layer_backward(model, at) + (block if recomputes else 0)
    below = block + acts.layer_backward(model, at)
    found = [
        Moment("output layer", activations=stored, logits=head, adapter=at_head),
        Moment("backward pass", activations=inside, logits=at.tokens * model.hidden * 4, adapter=at_head + gradients // model.layers),
        Moment("end of the backward pass", activations=below, adapter=gradients),
        Moment("optimizer step", adapter=gradients, overhead=gradients if at.device == "cuda" and job.optim == "adamw_torch" else 0),
    ]
    if job.test_size > 0:
        found.append(_evaluation(model, job, at))
    if at.device == "cpu":
        read = _reading(model, job, at.size) - kept
        found.append(Moment("reading the weights", overhead=max(read, 0)))
    return found


def _evaluation(model: Decoder, job: JobConfig, at: Setting) -> Moment:
    paired = 2 if job.objective in PAIRED else 1
    length = at.length // at.sequences if at.sequences == 1 and job.packing else at.length
    length = length // (job.per_device_train_batch_size if job.packing else 1)
    held = replace(at, sequences=job.per_device_eval_batch_size * paired, length=length)
    logits = held.tokens * model.vocabulary * (at.size + 4) if job.objective == "orpo" else acts.head_forward(model, held)
    return Moment("evaluation", activations=acts.layer_forward(model, held), logits=logits)


def _reading(model: Decoder, job: JobConfig, size: int) -> int:
    """The base as it is kept, beside the pages of its files, which count as this process's until they are read."""
    return sum(weights(model, job, size)) + 2 * model.parameters


def _usual_activation(model: Decoder) -> str:
    return "gelu_new" if model.kind in ("gpt2", "phi", "gptj", "codegen", "gpt_neo") else ""


def notes(model: Decoder, job: JobConfig) -> tuple[str, ...]:
    found = list(model.notes)
    if job.objective == "orpo":
        found.append("ORPO computes the logits of whole rows, which trl does not tile: long rows and large vocabularies are dear.")
    return tuple(found)
