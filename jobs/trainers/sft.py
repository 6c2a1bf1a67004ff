"""One training from its rows to its adapter: any method (methods.py) with any objective (objectives.py), through trl's trainers.

Rows are rendered and tokenised here, by the renderer that the preview and the chat use, and given to the trainer as ids.
Knows no queue, no database and no UI.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jobs.config import MAX_ROWS_WITHOUT_LEARNED_TOKEN, JobConfig
from jobs.rundir import PROGRESS, RunDir, checkpoint_step, manifest_problems
from jobs.trainers import adapters, base, compiling, determinism, methods, objectives
from jobs.trainers.adapters import AdapterCard
from jobs.trainers.best import Best
from jobs.trainers.checkpoints import CheckpointStore, full_disk_named
from jobs.trainers.events import EventLog
from jobs.trainers.peak import Peak
from jobs.trainers.rows import TokenRows, tokenize
from jobs.trainers.stopping import Stopped, StopWish
from studio.catalogue import reach, text_models
from studio.catalogue.quick_imports import import_bitsandbytes
from studio.datasets.rendering import Renderer
from studio.errors import DatasetError
from studio.types import DroppedPart

LEFT_OUT = {
    DroppedPart.SYSTEM: "the system message",
    DroppedPart.REASONING: "the reasoning",
    DroppedPart.EARLIER_REASONING: "the reasoning of earlier answers that are learned",
}


def train(run: RunDir, config: JobConfig, folder: Path, log: EventLog, stop: StopWish) -> dict[str, Any]:
    """Train from the last verified checkpoint, or from the start, and write the adapter to `folder`; its figures.

    Raises Stopped after a stop was asked for, and whatever went wrong otherwise (see jobs.trainers.failures).
    """
    model_folder = base.folder_of(config)
    config = config.model_copy(update={"max_length": base.max_length(config, model_folder)})
    renderer = Renderer.load(model_folder, run.kept_template() or config.chat_template, config.row_options())
    rows = _training_rows(run.train, renderer, config, log)
    held_out = _held_out(run, renderer, config, log)
    import_bitsandbytes()
    from jobs.trainers.exact import Reporter
    from jobs.trainers.watch import Watch

    device = base.choose_device(config, log)
    gives_back = device.name == "cpu" and base.give_back_freed_memory(model_folder, log)
    if config.full_determinism:
        determinism.use(log.notice)
    if device.name == "cuda" and not compiling.has_compiler():
        compiling.go_without_triton(log.notice)
    peak = Peak(device.name)
    base.bound_threads(config)
    store = CheckpointStore(run, config.save_total_limit)
    resumed = _resume_point(run, store, log)
    evaluates = held_out is not None
    best = Best(patience=config.early_stopping_patience)
    reporter = Reporter(log, stop, resumed, best, keeps_best=evaluates and config.load_best_model_at_end)
    _check_best(run, reporter, log)
    config = config.model_copy(update={"train_sampling_strategy": _sampling(config, rows, log)})
    base.check_weights(config, model_folder, log)
    model = base.load(config, device, log.notice, run.copies)
    targets = methods.targets(config, model, text_models.without_weights(text_models.config_of(model_folder)))
    if targets is not None and targets.left_out:
        log.notice(reach.sentence(targets.share, targets.left_out))
    card = AdapterCard(config, renderer, targets, rows.with_tools > 0)
    trainer = objectives.trainer_class(config.objective)(
        model=model,
        args=_arguments(run, config, device, evaluates),
        train_dataset=objectives.ready_rows(rows.dataset, config),
        eval_dataset=held_out and objectives.ready_rows(held_out, config),
        processing_class=base.tokenizer(renderer),
        peft_config=methods.peft_config(config, model, model_folder, log.notice, targets),
        card=card,
        store=store,
        reporter=reporter,
    )
    watch = Watch(run, config, renderer, log, stop)
    watch.attach(trainer)
    max_steps = _set_cadence(trainer, config)
    stop.begin_keeping()
    log.write("start", step=(resumed and checkpoint_step(resumed)) or 0, max_steps=max_steps, device=device.name, rows=len(rows.dataset))
    _run(trainer, resumed, stop)
    figures = {**reporter.figures(), **_take_best(run, trainer, log)}
    watch.conclude()
    with full_disk_named(folder, "the adapter"):
        adapters.save(folder, trainer.model, card, figures, trainer.start)
    return {**figures, **peak.figures(), "longest_row": _longest(rows), "gives_memory_back": gives_back or not base.is_large(model_folder)}


def _held_out(run: RunDir, renderer: Renderer, config: JobConfig, log: EventLog) -> Any:
    """The rows to evaluate on as tokens; None where there are none."""
    if not run.eval.exists():
        return None
    rows = tokenize(run.eval, renderer, config)
    if rows.truncated:
        log.notice(f"{rows.truncated} of {rows.read} held-out rows are longer than {config.max_length} tokens and were cut at the end.")
    if not len(rows.dataset):
        return None
    return rows.dataset


def _longest(rows: TokenRows) -> int:
    """Tokens of the longest row, prompt and longer answer together."""
    lists = [name for name in rows.dataset.column_names if name.endswith("_ids")]
    answers = [name for name in lists if name != "prompt_ids"]
    lengths = {name: [len(ids) for ids in rows.dataset[name]] for name in lists}
    prompts = lengths.get("prompt_ids") or [0] * len(rows.dataset)
    return max(prompt + max(lengths[name][n] for name in answers) for n, prompt in enumerate(prompts))


def _sampling(config: JobConfig, rows: TokenRows, log: EventLog) -> str:
    lengths = []
    if config.objective_entry.imitates:
        lengths = [len(ids) for ids in rows.dataset["input_ids"]]
    chosen, size = objectives.sampling(config, lengths), config.per_device_train_batch_size
    share = objectives.padding_share(lengths, size)
    if config.train_sampling_strategy != "auto" or config.packing or share <= objectives.MOST_PADDING:
        return chosen
    if chosen == "batch_rebalance":
        log.notice(f"Rows of like length are computed together: at random {share:.0%} of each batch would be padding.")
    elif config.gradient_accumulation_steps == 1:
        part, accumulated = objectives.in_parts(size)
        log.notice(
            f"About {share:.0%} of each batch is padding. A batch size of {part} with {accumulated} gradient accumulation steps computes "
            "the same steps with less of it; packing leaves none."
        )
    return chosen


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
        adapters.restore(run.checkpoint(step), trainer.model)
        log.notice(f"The adapter is that of step {step}, where the loss on held-out rows was lowest ({loss:.4f}).")
    return {"eval_loss": loss, "best_step": step}


def _run(trainer: Any, resumed: Path | None, stop: StopWish) -> None:
    if resumed and _is_complete(resumed):
        # killed between the last checkpoint and the result; upstream would take another step
        trainer.adopt(resumed)
        return
    trainer.train(resume_from_checkpoint=resumed and str(resumed))
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
    rows = tokenize(path, renderer, config)
    if rows.read == 0:
        raise DatasetError("There are no rows to train on.", "Choose a dataset with rows, or a smaller test_size.")
    share = rows.without_learned_tokens / rows.read
    if share > MAX_ROWS_WITHOUT_LEARNED_TOKEN or len(rows.dataset) == 0:
        why = rows.refusal or "the answer is missing, marked not to be trained, or cut off"
        way_on = rows.way_on or "Correct the rows, set learned_turns, or raise max_length."
        raise DatasetError(
            f"{rows.without_learned_tokens} of {rows.read} rows hold no token to learn ({why}).",
            f"{way_on} The Data tab shows what is learned.",
        )
    if rows.without_learned_tokens:
        why = f" ({rows.refusal})" * bool(rows.refusal)
        log.notice(f"{rows.without_learned_tokens} of {rows.read} rows hold no token to learn and were left out{why}.")
    for what, count in rows.left_out.items():
        log.notice(f"The chat template leaves out {LEFT_OUT[what]} of {count} of {rows.read} rows.")
    if rows.with_tools and renderer.tells_tools_as_text:
        log.notice(f"The chat template has no place for the tools of {rows.with_tools} of {rows.read} rows: they are told as plain text.")
    if rows.empty_reasoning:
        log.notice(
            f"{rows.empty_reasoning} of {rows.read} rows teach an empty block of reasoning, and so not to think; "
            "reasoning=context writes the block without teaching it."
        )
    if rows.truncated:
        log.notice(f"{rows.truncated} of {rows.read} rows are longer than {config.max_length} tokens and were cut at the end.")
    return rows


def import_libraries() -> None:
    """All that a training imports, and nothing else: no random number is drawn, no file written, no GPU touched."""
    import_bitsandbytes()
    import datasets  # noqa: F401
    import peft  # noqa: F401
    import trl  # noqa: F401
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerFast  # noqa: F401

    from jobs.trainers import exact, watch  # noqa: F401


def _arguments(run: RunDir, config: JobConfig, device: base.ComputeDevice, evaluates: bool) -> Any:
    return objectives.arguments(
        config,
        {
            "output_dir": str(run.checkpoints),
            "bf16": device.dtype == "bfloat16",
            "fp16": device.dtype == "float16",
            "use_cpu": device.name == "cpu",
            "eval_strategy": "steps" if evaluates else "no",
            "save_strategy": "steps",
            "dataloader_pin_memory": device.name == "cuda",
            "logging_nan_inf_filter": False,  # hides what has to end the run
            "disable_tqdm": True,
        },
    )


def _set_cadence(trainer: Any, config: JobConfig) -> int:
    """Decide how often to save and evaluate, now that the number of (packed) rows is known; the number of steps."""
    batches = math.ceil(len(trainer.train_dataset) / config.per_device_train_batch_size)
    steps_per_epoch = max(math.ceil(batches / config.gradient_accumulation_steps), 1)
    steps = math.ceil(config.num_train_epochs * steps_per_epoch)
    if config.max_steps > 0:
        steps = config.max_steps
    trainer.args.save_steps, trainer.args.eval_steps = config.cadence(steps)
    return steps
