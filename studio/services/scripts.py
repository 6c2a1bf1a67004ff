"""`studio jobs script`: a job as a bare TRL script with the same settings, rows and order of rows. Text in, text out.

Knows no torch: it writes what somebody else will run.
"""

from __future__ import annotations

import pprint
from pathlib import Path
from typing import Any

from jobs.config import PASSED_THROUGH, JobConfig

PASSED = (PASSED_THROUGH - {"save_total_limit"}) | {"gradient_checkpointing"}

TEMPLATE = '''"""{title}: the training of an Adapter Studio job as a bare TRL script.

Run it in the studio's environment: `python {file} [FOLDER FOR THE ADAPTER]`. Rows are rendered by the studio's renderer,
so that ids and learned tokens are the job's; all else is trl, peft and transformers.
"""

import json
import platform
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, EarlyStoppingCallback, PreTrainedTokenizerFast, TrainerCallback
from trl import SFTConfig, SFTTrainer

from studio.datasets.rendering import Renderer
from studio.types import Example

RUN = Path({run!r})
MODEL = {model!r}
ADAPTER = Path(sys.argv[1] if len(sys.argv) > 1 else {adapter!r})

OPTIONS = {options}
LORA = {lora}
QUANTIZATION = {quantization}
DEVICE = {device!r}
THREADS = {threads}
TAKE_BEST = {take_best}
PATIENCE = {patience}


class LastEvaluation(TrainerCallback):
    """Evaluate behind the last step too."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_evaluate = control.should_evaluate or (state.global_step >= state.max_steps and args.eval_strategy != "no")


def device_and_type():
    """The GPU when there is one; bfloat16 where the hardware computes in it."""
    if DEVICE != "cpu" and torch.cuda.is_available():
        return "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    fast = platform.machine() in ("arm64", "aarch64") or any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "cpu", torch.bfloat16 if fast else torch.float32


def rows(path, renderer):
    """Ids, and labels that are -100 where nothing is learned."""
    ids, labels = [], []
    for line in path.open(encoding="utf-8"):
        row = renderer.example(Example.model_validate_json(line), OPTIONS["max_length"])
        if any(row.learned[1:]):
            ids.append(list(row.ids))
            labels.append([token if learned else -100 for token, learned in zip(row.ids, row.learned)])
    return Dataset.from_dict({{"input_ids": ids, "labels": labels}})


def token(renderer, number):
    return None if number is None else renderer.tokenizer.id_to_token(number)


def main():
    if THREADS:
        torch.set_num_threads(THREADS)
    device, dtype = device_and_type()
    renderer = Renderer.load(Path(MODEL), str(RUN / "chat_template.jinja"))
    train, held_out = rows(RUN / "train.jsonl", renderer), rows(RUN / "eval.jsonl", renderer)
    quantization = None
    if QUANTIZATION["load_in_4bit"]:
        compute = dtype if QUANTIZATION["bnb_4bit_compute_dtype"] == "bfloat16" else getattr(torch, QUANTIZATION["bnb_4bit_compute_dtype"])
        quantization = BitsAndBytesConfig(**{{**QUANTIZATION, "bnb_4bit_compute_dtype": compute}})
    model = AutoModelForCausalLM.from_pretrained(
        MODEL, dtype=dtype, quantization_config=quantization, device_map={{"": 0 if device == "cuda" else "cpu"}}, local_files_only=True
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
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(ADAPTER.parent / "trl-output"),
            **OPTIONS,
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
            eval_packing=False,
            dataset_kwargs={{"skip_prepare_dataset": not OPTIONS["packing"]}},
            dataloader_pin_memory=device == "cuda",
            disable_tqdm=True,
        ),
        train_dataset=train,
        eval_dataset=held_out if len(held_out) else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **LORA),
        callbacks=[LastEvaluation()],
    )
    if PATIENCE and len(held_out):
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=PATIENCE))
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    done = trainer.train()
    trainer.model.save_pretrained(ADAPTER)
    print(json.dumps({{"steps": done.global_step, "train_loss": done.training_loss, "seconds": done.metrics["train_runtime"]}}))


if __name__ == "__main__":
    main()
'''


def script(name: str, config: JobConfig, run: Path, eval_steps: int | None) -> str:
    """The text of the script. `eval_steps` as the job had it: the library counts by itself where it is None."""
    values: dict[str, Any] = config.model_dump(mode="json", include=set(PASSED))
    return TEMPLATE.format(
        title=name,
        file=f"{name}.py",
        run=str(run),
        model=config.model_name_or_path,
        adapter=f"{name}-adapter",
        options=pprint.pformat(values, width=120),
        lora=pprint.pformat(config.lora.model_dump(mode="json"), width=120),
        quantization=pprint.pformat(config.quantization.model_dump(mode="json"), width=120),
        device=config.device,
        threads=config.num_threads,
        take_best=config.load_best_model_at_end,
        patience=config.early_stopping_patience,
        eval_steps=eval_steps or 500,
    )
