"""`studio jobs script`: a job as a bare TRL script with the same settings, rows and order of rows. Text in, text out.

Knows no torch: it writes what somebody else will run.
"""

from __future__ import annotations

import pprint
from pathlib import Path
from typing import Any

from jobs.config import PASSED_THROUGH, JobConfig

PASSED = (PASSED_THROUGH - {"save_total_limit"}) | {"gradient_checkpointing"}
IMITATING = ("sft", "continued-pretraining")

TEMPLATE = '''"""{title}: the training of an Adapter Studio job as a bare TRL script.

Run it in the studio's environment: `python {file} [FOLDER FOR THE ADAPTER]`. Rows are rendered by the studio's code, so that ids
and learned tokens are the job's; all else is trl, peft and transformers.
"""

import json
import platform
import sys
from pathlib import Path

import torch
from peft import {peft_names}
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, EarlyStoppingCallback, PreTrainedTokenizerFast, TrainerCallback
from {trl_module} import {trl_names}

from jobs.config import JobConfig
from jobs.trainers.objectives import ready_rows, sampling
from jobs.trainers.rows import tokenize
from studio.datasets.rendering import Renderer

RUN = Path({run!r})
MODEL = {model!r}
ADAPTER = Path(sys.argv[1] if len(sys.argv) > 1 else {adapter!r})

OPTIONS = {options}
QUANTIZATION = {quantization}
DEVICE = {device!r}
THREADS = {threads}
TAKE_BEST = {take_best}
PATIENCE = {patience}


class LastEvaluation(TrainerCallback):
    """Evaluate behind the last step too."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_evaluate or (state.global_step >= state.max_steps and args.eval_strategy != "no")

{ready}
def device_and_type():
    """The GPU when there is one; bfloat16 where the hardware computes in it."""
    if DEVICE != "cpu" and torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = platform.machine() in ("arm64", "aarch64") or any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "cpu", torch.bfloat16 if fast else torch.float32


def token(renderer, number):
    return None if number is None else renderer.tokenizer.id_to_token(number)


def quantization(dtype):
    if QUANTIZATION["load_in_8bit"]:
        return BitsAndBytesConfig(load_in_8bit=True)
    if not QUANTIZATION["load_in_4bit"]:
        return None
    compute = dtype if QUANTIZATION["bnb_4bit_compute_dtype"] == "bfloat16" else getattr(torch, QUANTIZATION["bnb_4bit_compute_dtype"])
    return BitsAndBytesConfig(**{{**QUANTIZATION, "bnb_4bit_compute_dtype": compute}})


def adapter(model):
    """What is trained."""
{adapter_code}

def main():
    if THREADS:
        torch.set_num_threads(THREADS)
    device, dtype = device_and_type()
    job = JobConfig.model_validate_json((RUN / "config.json").read_text(encoding="utf-8"))
    renderer = Renderer.load(Path(MODEL), str(RUN / "chat_template.jinja"))
    rows, held_out = (tokenize(RUN / name, renderer, job).dataset for name in ("train.jsonl", "eval.jsonl"))
    model = AutoModelForCausalLM.from_pretrained(
        MODEL,
        dtype=dtype,
        quantization_config=quantization(dtype),
        attn_implementation={attention!r},
        device_map={{"": 0 if device == "cuda" else "cpu"}},
        local_files_only=True,
    )
    for module in model.modules():  # the 4-bit kernel for CPUs repacks weights in place, which an evaluation does not survive
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    padding = next((i for i in (renderer.pad_token_id, renderer.eos_token_id) if i is not None), 0)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=renderer.tokenizer,
        bos_token=token(renderer, renderer.bos_token_id),
        eos_token=token(renderer, renderer.eos_token_id),
        pad_token=token(renderer, padding),
    )
    trainer = {trainer}(
        model=model,
        args={arguments}(
            output_dir=str(ADAPTER.parent / "trl-output"),
            **OPTIONS,
            {order}
            activation_checkpointing=OPTIONS["gradient_checkpointing"],
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            use_cpu=device == "cpu",
            eval_strategy="steps" if len(held_out) else "no",
            eval_steps={eval_steps},
            save_strategy="steps" if TAKE_BEST and len(held_out) else "no",
            save_steps={eval_steps},
            save_total_limit=2,
            load_best_model_at_end=TAKE_BEST and len(held_out) > 0,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            dataloader_pin_memory=device == "cuda",
            disable_tqdm=True,
        ),
        train_dataset=ready_rows(rows, job),
        eval_dataset=ready_rows(held_out, job) if len(held_out) else None,
        processing_class=tokenizer,
        peft_config=adapter(model),
        callbacks=[LastEvaluation()],
    )
    if PATIENCE and len(held_out):
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=PATIENCE))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
{before}    done = trainer.train()
    trainer.model.save_pretrained(ADAPTER{saving})
    print(json.dumps({{"steps": done.global_step, "train_loss": done.training_loss, "seconds": done.metrics["train_runtime"]}}))


if __name__ == "__main__":
    main()
'''

READY = '''
class {name}({base}):
    """The rows are tokens already."""

    def {method}(self, dataset, *args, **kwargs):
        return dataset

'''
BALANCED = '''
from jobs.trainers.balanced import BalancedSteps


class StepTrainer(BalancedSteps, SFTTrainer):
    """Where the order is batch_rebalance: every row once per epoch, by the job's seed."""

'''
ON_THE_BASE = '''    def __init__(self, *, model, peft_config, **kwargs):
        """Left to itself it makes float32 of what a quantised base keeps in 16 bits."""
        from peft import get_peft_model
        from transformers import set_seed

        set_seed(kwargs["args"].seed)
        super().__init__(model=get_peft_model(model, peft_config), **kwargs)

'''
FASTER = """    kind, values = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer = create_loraplus_optimizer(model=trainer.model, optimizer_cls=kind, loraplus_lr_ratio={ratio}, **values)
"""
PISSA = """    start = str(ADAPTER.parent / "pissa-start")  # PiSSA changes the base: what is saved is the difference to the start
    trainer.model.peft_config["default"].init_lora_weights = True
    trainer.model.save_pretrained(start)
    trainer.model.peft_config["default"].init_lora_weights = "pissa"
"""
DEAD_ROWS = """    found = LoraConfig(task_type="CAUSAL_LM", **{values})
    # DoRA divides by the length of each row of weights: layers with a row of zeros are left out
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    found.exclude_modules = [name for name, layer in layers if (dequantize_module_weight(layer).float().norm(dim=1) == 0).any()] or None
    return found
"""
EVERYTHING = """    # a trained copy of each layer beside the frozen one
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    layers, whole = set(), set()
    for name, module in model.named_modules():
        if any(module is end for end in ends):
            whole.add(name.rpartition(".")[2])
        elif next(module.parameters(recurse=False), None) is not None:
            layers.add(name.rpartition(".")[2])
    return LNTuningConfig(task_type="CAUSAL_LM", target_modules=sorted(layers), modules_to_save=sorted(whole))
"""
BOTTLENECK = """    from jobs import bottleneck  # peft has none of its own

    names = bottleneck.targets([name for name, _ in model.named_modules()], {mh_adapter})
    return bottleneck.register()(task_type="CAUSAL_LM", target_modules=names, **{values})
"""


def script(name: str, config: JobConfig, run: Path, eval_steps: int | None) -> str:
    """The text of the script. `eval_steps` as the job had it: the library counts by itself where it is None."""
    options, order = _options(config)
    peft_names, code = _adapter(config)
    return TEMPLATE.format(
        title=name,
        file=f"{name}.py",
        run=str(run),
        model=config.model_name_or_path,
        adapter=f"{name}-adapter",
        options=_literal(options),
        order=order,
        quantization=_literal(config.quantization.model_dump(mode="json")),
        attention=config.attn_implementation,
        device=config.device,
        threads=config.num_threads,
        take_best=config.load_best_model_at_end,
        patience=config.early_stopping_patience,
        eval_steps=eval_steps or 500,
        peft_names=peft_names,
        adapter_code=code,
        **_trainer(config),
        **_start(config),
    )


def _trainer(config: JobConfig) -> dict[str, str]:
    """Where trl keeps the trainer of this objective, and how it is told that the rows are tokens already."""
    if config.objective in IMITATING:
        names = {"trl_module": "trl", "trl_names": "SFTConfig, SFTTrainer", "arguments": "SFTConfig"}
        return {**names, "trainer": "StepTrainer", "ready": BALANCED}
    kind = config.objective.upper()
    module, method = ("trl.experimental.orpo", "tokenize_row") if config.objective == "orpo" else ("trl", "_prepare_dataset")
    return {
        "trl_module": module,
        "trl_names": f"{kind}Config, {kind}Trainer",
        "trainer": "ReadyTrainer",
        "arguments": f"{kind}Config",
        "ready": READY.format(name="ReadyTrainer", base=f"{kind}Trainer", method=method) + (ON_THE_BASE if kind == "ORPO" else ""),
    }


def _options(config: JobConfig) -> tuple[dict[str, Any], str]:
    """Arguments of trl's configuration that are plain values, and a line for the order of rows where the rows decide it."""
    values: dict[str, Any] = config.model_dump(mode="json", include=set(PASSED))
    if config.objective in IMITATING:
        values |= {"eval_packing": False, "dataset_kwargs": {"skip_prepare_dataset": not config.packing}}
        return values, 'train_sampling_strategy=sampling(job, [len(ids) for ids in rows["input_ids"]]),'
    values.pop("packing")
    values["disable_dropout"] = config.lora.lora_dropout == 0
    own: dict[str, dict[str, Any]] = {
        "dpo": config.dpo.model_dump(mode="json"),
        "kto": config.kto.model_dump(mode="json"),
        "orpo": {**config.orpo.model_dump(mode="json"), "remove_unused_columns": False},
    }
    asked = config.train_sampling_strategy
    order = "sequential" if config.objective == "kto" else "random" if asked == "auto" else asked
    return {**values, **own[config.objective]}, f"train_sampling_strategy={order!r},"


def _adapter(config: JobConfig) -> tuple[str, str]:
    """What to import from peft, and the body of `adapter(model)`."""
    prompt = {"num_virtual_tokens": config.prompt.num_virtual_tokens}
    width = config.prompt.encoder_hidden_size or "model.config.get_text_config().hidden_size"
    if config.method == "lora":
        return _lora(config)
    if config.method == "ia3":
        values = {} if config.ia3.target_modules == "auto" else config.ia3.model_dump(mode="json")
        return "IA3Config", f'    return IA3Config(task_type="CAUSAL_LM", **{_literal(values)})\n'
    if config.method == "prompt-tuning":
        text = config.prompt.prompt_tuning_init_text
        start = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": text, "tokenizer_name_or_path": config.model_name_or_path}
        values = {**prompt, **(start if text else {"prompt_tuning_init": "SAMPLE_VOCAB"})}
        return "PromptTuningConfig", f'    return PromptTuningConfig(task_type="CAUSAL_LM", **{_literal(values)})\n'
    if config.method == "p-tuning":
        return "PromptEncoderConfig", f'    return PromptEncoderConfig(task_type="CAUSAL_LM", encoder_hidden_size={width}, **{prompt})\n'
    if config.method == "prefix-tuning":
        values = {**prompt, "prefix_projection": config.prompt.prefix_projection}
        return "PrefixTuningConfig", f'    return PrefixTuningConfig(task_type="CAUSAL_LM", encoder_hidden_size={width}, **{values})\n'
    if config.method == "bottleneck":
        values = config.bottleneck.model_dump(mode="json", exclude={"mh_adapter"})
        return "PeftModel  # noqa: F401", BOTTLENECK.format(mh_adapter=config.bottleneck.mh_adapter, values=values)
    return "LNTuningConfig", EVERYTHING


def _lora(config: JobConfig) -> tuple[str, str]:
    values = config.lora.model_dump(mode="json", exclude={"loraplus_lr_ratio"})
    values["init_lora_weights"] = True if values["init_lora_weights"] == "default" else values["init_lora_weights"]
    names = "LoraConfig"
    if config.lora.loraplus_lr_ratio is not None:
        names += "\nfrom peft.optimizers import create_loraplus_optimizer"
    if config.lora.use_dora:
        return names + "\nfrom peft.utils.integrations import dequantize_module_weight", DEAD_ROWS.format(values=values)
    return names, f'    return LoraConfig(task_type="CAUSAL_LM", **{_literal(values)})\n'


def _start(config: JobConfig) -> dict[str, str]:
    """What is done between the trainer and its training, and how the adapter is saved."""
    faster = config.method == "lora" and config.lora.loraplus_lr_ratio is not None
    pissa = config.method == "lora" and config.lora.init_lora_weights == "pissa"
    before = (FASTER.format(ratio=config.lora.loraplus_lr_ratio) if faster else "") + (PISSA if pissa else "")
    return {"before": before, "saving": ", path_initial_model_for_weight_conversion=start" if pissa else ""}


def _literal(value: Any) -> str:
    return pprint.pformat(value, width=120)
