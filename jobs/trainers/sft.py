"""Supervised fine-tuning: LoRA on a frozen 16-bit base, or QLoRA on a frozen 4-bit one, through trl's SFTTrainer.

Rows are rendered and tokenised here, by the renderer that the preview and the chat use, and given to the trainer as ids
and labels. Knows no queue, no database and no UI.
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.config import MAX_ROWS_WITHOUT_LEARNED_TOKEN, PASSED_THROUGH, JobConfig
from jobs.rundir import PROGRESS, RunDir, checkpoint_step, manifest_problems
from jobs.trainers import adapters
from jobs.trainers.adapters import AdapterCard
from jobs.trainers.best import Best
from jobs.trainers.checkpoints import CheckpointStore, full_disk_named
from jobs.trainers.events import EventLog
from jobs.trainers.rows import TokenRows, tokenize
from jobs.trainers.stopping import Stopped, StopWish
from studio.datasets.rendering import Renderer
from studio.errors import DatasetError, ModelError


@dataclass(frozen=True)
class Device:
    """Where to compute, and in which type: the frozen base's, and of the arithmetic."""

    name: str  # cuda, cpu
    dtype: str  # bfloat16, float16, float32


def train(run: RunDir, config: JobConfig, folder: Path, log: EventLog, stop: StopWish) -> dict[str, Any]:
    """Train from the last verified checkpoint, or from the start, and write the adapter to `folder`; its figures.

    Raises Stopped after a stop was asked for, and whatever went wrong otherwise (see jobs.trainers.failures).
    """
    model_folder = _model_folder(config)
    config = config.model_copy(update={"max_length": _max_length(config, model_folder)})
    renderer = Renderer.load(model_folder, str(run.chat_template) if run.chat_template.exists() else config.chat_template)
    rows = _training_rows(run.train, renderer, config, log)
    held_out = tokenize(run.eval, renderer, config.max_length) if run.eval.exists() else None
    _import_bitsandbytes()
    from jobs.trainers.exact import ExactTrainer, Reporter

    device = _device(config, log)
    _bound_threads(config)
    card, store = AdapterCard(config, renderer), CheckpointStore(run, config.save_total_limit)
    resumed = _resume_point(run, store, log)
    evaluates = held_out is not None and len(held_out.dataset) > 0
    best = Best(patience=config.early_stopping_patience)
    reporter = Reporter(log, stop, resumed, best, keeps_best=evaluates and config.load_best_model_at_end)
    _check_best(run, reporter, log)
    trainer = ExactTrainer(
        model=_base_model(config, device),
        args=_arguments(run, config, device, evaluates),
        train_dataset=rows.dataset,
        eval_dataset=held_out.dataset if held_out and evaluates else None,
        processing_class=_tokenizer(renderer),
        peft_config=_lora(config),
        card=card,
        store=store,
        reporter=reporter,
    )
    max_steps = _set_cadence(trainer, config)
    stop.begin_keeping()
    log.write("start", step=checkpoint_step(resumed) if resumed else 0, max_steps=max_steps, device=device.name, rows=len(rows.dataset))
    _run(trainer, resumed, stop)
    figures = {**reporter.figures(), **_take_best(run, trainer, log)}
    with full_disk_named(folder, "the adapter"):
        adapters.save(folder, trainer.model, card, figures)
    return figures


def _check_best(run: RunDir, reporter: Any, log: EventLog) -> None:
    """The run goes on without its best checkpoint where that is damaged."""
    if reporter.pinned is not None and (problems := manifest_problems(run.checkpoint(reporter.pinned))):
        log.notice(
            f"Checkpoint checkpoint-{reporter.pinned}, the best so far, is damaged ({problems[0]}): "
            "the best is chosen among the evaluations to come."
        )
        reporter.best.forget()


def _take_best(run: RunDir, trainer: Any, log: EventLog) -> dict[str, Any]:
    """Put the weights of the best checkpoint into the model; figures that say so."""
    step, loss = trainer.reporter.pinned, trainer.reporter.best.loss
    if step is None:
        return {}
    if step != trainer.state.global_step:
        if problems := manifest_problems(run.checkpoint(step)):
            log.notice(f"Checkpoint checkpoint-{step}, the best, is damaged ({problems[0]}): the adapter is that of the last step.")
            return {}
        adapters.load(run.checkpoint(step) / "adapter", trainer.model)
        log.notice(f"The adapter is that of step {step}, where the loss on held-out rows was lowest ({loss:.4f}).")
    return {"eval_loss": loss, "best_step": step}


def _run(trainer: Any, resumed: Path | None, stop: StopWish) -> None:
    if resumed and _is_complete(resumed):
        # killed between the last checkpoint and the result; upstream would take another step
        trainer.adopt(resumed)
        return
    trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if trainer.state.global_step < trainer.state.max_steps and not trainer.reporter.best.is_over:
        if stop.is_set:
            raise Stopped
        raise RuntimeError(f"training ended at step {trainer.state.global_step} of {trainer.state.max_steps}")


def _is_complete(checkpoint: Path) -> bool:
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"] or progress.get("is_over"))


def _resume_point(run: RunDir, store: CheckpointStore, log: EventLog) -> Path | None:
    store.clean()
    found, damaged = run.last_verified_checkpoint()
    for sentence in damaged:
        log.notice(f"Checkpoint {sentence}")
    store.drop_newer(found)
    if found:
        log.notice(f"Going on from {found.name}.")
    return found


def _training_rows(path: Path, renderer: Renderer, config: JobConfig, log: EventLog) -> TokenRows:
    rows = tokenize(path, renderer, config.max_length)
    if rows.read == 0:
        raise DatasetError("There are no rows to train on.", "Choose a dataset with rows, or a smaller test_size.")
    share = rows.without_learned_tokens / rows.read
    if share > MAX_ROWS_WITHOUT_LEARNED_TOKEN or len(rows.dataset) == 0:
        why = rows.refusal or "the answer is missing or cut off"
        raise DatasetError(
            f"{rows.without_learned_tokens} of {rows.read} rows hold no token to learn ({why}).",
            "Raise max_length, shorten the prompts, or fix the rows; the Data tab shows what is learned.",
        )
    if rows.without_learned_tokens:
        why = f" ({rows.refusal})" if rows.refusal else ""
        log.notice(f"{rows.without_learned_tokens} of {rows.read} rows hold no token to learn and were left out{why}.")
    if rows.truncated:
        log.notice(f"{rows.truncated} of {rows.read} rows are longer than {config.max_length} tokens and were cut at the end.")
    return rows


def _model_folder(config: JobConfig) -> Path:
    folder = Path(config.model_name_or_path or config.base_model)
    if not (folder / "config.json").is_file():
        raise ModelError(f"The base model {config.base_model} is not in {folder}.", "Add it again under Models, or restore its folder.")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"The base model {config.base_model} has no safetensors file in {folder}.", "Add a model in safetensors form.")
    return folder


def _max_length(config: JobConfig, folder: Path) -> int:
    """Rows longer than the model's context can't be learned, whatever the option says."""
    context = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
    return min(config.max_length, context) if isinstance(context, int) and context > 0 else config.max_length


def import_libraries() -> None:
    """All that a training imports, and nothing else: no random number is drawn, no file written, no GPU touched."""
    _import_bitsandbytes()
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast  # noqa: F401

    from jobs.trainers import exact  # noqa: F401


def _import_bitsandbytes() -> None:
    """Import it with torch.compile out of the way.

    It wraps its plain fallbacks in torch.compile at import: that pulls in the whole compiler (seconds), and would make
    their results depend on whether this machine has a C++ compiler.
    """
    import torch

    compiler = torch.compile
    torch.compile = lambda function=None, **_: function if function is not None else (lambda inner: inner)
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler


def _device(config: JobConfig, log: EventLog) -> Device:
    import torch

    if config.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("device=cuda, but torch sees no GPU here.", "Set device to auto or cpu, or install torch for this machine's GPU.")
    if config.device != "cpu" and torch.cuda.is_available():
        return Device("cuda", "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16")
    if _has_bfloat16_instructions():
        return Device("cpu", "bfloat16")
    log.notice("This processor has no bfloat16 instructions: computing in float32, which is several times faster here.")
    return Device("cpu", "float32")


def _has_bfloat16_instructions() -> bool:
    import torch

    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return platform.machine() in ("arm64", "aarch64") or any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _bound_threads(config: JobConfig) -> None:
    import torch

    if config.num_threads:
        torch.set_num_threads(config.num_threads)


def _base_model(config: JobConfig, device: Device) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # a log file can't show it
    quantization = None
    if config.quantization.load_in_4bit:
        values = config.quantization.model_dump()
        compute = device.dtype if values["bnb_4bit_compute_dtype"] == "bfloat16" else values["bnb_4bit_compute_dtype"]
        quantization = BitsAndBytesConfig(**{**values, "bnb_4bit_compute_dtype": getattr(torch, compute)})
    model = AutoModelForCausalLM.from_pretrained(
        str(_model_folder(config)),
        dtype=getattr(torch, device.dtype),
        quantization_config=quantization,
        device_map={"": 0 if device.name == "cuda" else "cpu"},
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
    )
    for module in model.modules():
        # else the first forward in eval mode repacks 4-bit weights in place: widths that are no multiple of 64 fail,
        # and models with biases can't be evaluated during training
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    _check_targets(model, config)
    # frozen embeddings, norms and head stay in 16 bits: peft's upcast to 32 costs gigabytes on large vocabularies
    return model


def _check_targets(model: Any, config: JobConfig) -> None:
    targets = config.lora.target_modules
    if isinstance(targets, str):
        targets = [] if targets == "all-linear" else [targets]
    names = [name for name, _ in model.named_modules()]
    missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in names)]
    if missing:
        present = sorted({name.rpartition(".")[2] for name in names if name.endswith(("_proj", "_attn", "_fc", "fc1", "fc2", "dense"))})
        raise ModelError(
            f"{config.base_model} has no layers named {', '.join(missing)}.",
            f"Set lora.target_modules to all-linear{', or to some of ' + ', '.join(present) if present else ''}.",
        )


def _tokenizer(renderer: Renderer) -> Any:
    """What SFTTrainer asks for; the rows are tokens already, so only its padding token is used."""
    from transformers import PreTrainedTokenizerFast

    def text(token_id: int | None) -> str | None:
        return None if token_id is None else renderer.tokenizer.id_to_token(token_id)

    padding = next((i for i in (renderer.pad_token_id, renderer.eos_token_id) if i is not None), 0)
    return PreTrainedTokenizerFast(
        tokenizer_object=renderer.tokenizer,
        bos_token=text(renderer.bos_token_id),
        eos_token=text(renderer.eos_token_id),
        pad_token=text(padding),
    )


def _lora(config: JobConfig) -> Any:
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", **config.lora.model_dump())


def _arguments(run: RunDir, config: JobConfig, device: Device, evaluates: bool) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(run.checkpoints),
        **config.model_dump(include=set(PASSED_THROUGH)),
        activation_checkpointing=config.gradient_checkpointing,
        gradient_checkpointing=config.gradient_checkpointing,
        bf16=device.dtype == "bfloat16",
        fp16=device.dtype == "float16",
        use_cpu=device.name == "cpu",
        eval_strategy="steps" if evaluates else "no",
        save_strategy="steps",
        eval_packing=False,
        dataset_kwargs={"skip_prepare_dataset": not config.packing},
        dataloader_pin_memory=device.name == "cuda",
        logging_nan_inf_filter=False,  # hides what has to end the run
        disable_tqdm=True,
    )


def _set_cadence(trainer: Any, config: JobConfig) -> int:
    """Decide how often to save and evaluate, now that the number of (packed) rows is known; the number of steps."""
    batches = math.ceil(len(trainer.train_dataset) / config.per_device_train_batch_size)
    steps_per_epoch = max(math.ceil(batches / config.gradient_accumulation_steps), 1)
    steps = config.max_steps if config.max_steps > 0 else math.ceil(config.num_train_epochs * steps_per_epoch)
    trainer.args.save_steps, trainer.args.eval_steps = config.cadence(steps)
    return steps
