"""The text of a training's script: blocks that the options choose. Text in, text out."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from jobs.config import JobConfig
from jobs.objectives import RowForm, TrainerFamily
from jobs.trainers import objectives
from studio.catalogue import precision, rope
from studio.catalogue.architecture import sees_whole_rows
from studio.catalogue.memory import model_config
from studio.catalogue.models import read_json
from studio.catalogue.wrappers import CAUSAL as CAUSAL_LM
from studio.catalogue.wrappers import text_model
from studio.services import script_blocks as blocks

COLUMNS = {
    RowForm.IMITATION: "`input_ids` and `labels`; -100 marks what is read and not learned",
    RowForm.PAIRED: "`prompt_ids`, `chosen_ids` and `rejected_ids`",
    RowForm.MARKED: "`prompt_ids`, `completion_ids` and `label`",
}
CAUSAL = 'task_type="CAUSAL_LM"'
BARE = "Needs transformers, trl, peft and datasets; nothing of the studio."


@dataclass(frozen=True)
class Script:
    """What a script is about. `config` has the order of rows that the job takes."""

    name: str
    stem: str  # of the files beside it
    config: JobConfig
    padding: str  # the token behind shorter rows
    asks_model: bool = False  # peft's all-linear and bitsandbytes' layers are not what the job trains and keeps in fewer bits

    @property
    def is_quantised(self) -> bool:
        return self.config.quantization.bits < 16

    @property
    def is_packed_apart(self) -> bool:
        """Whether packed rows attend each to itself by the studio's code."""
        if not self.config.packing or self.config.attn_implementation not in ("auto", "sdpa"):
            return False
        return sees_whole_rows(model_config(Path(self.config.model_name_or_path)), self.config.max_length)

    @property
    def auto_class(self) -> str:
        """The class of transformers that loads the base."""
        if not self._model_config.is_file():
            return CAUSAL_LM
        return text_model(read_json(self._model_config)).auto_class

    @property
    def without_bfloat16(self) -> str:
        """The number format on a GPU that does not compute in bfloat16."""
        values = read_json(self._model_config) if self._model_config.is_file() else {}
        return precision.compute_dtype("cuda", False, str(values.get("model_type", "")))

    @property
    def _model_config(self) -> Path:
        return Path(self.config.model_name_or_path or self.config.base_model) / "config.json"

    def of_the_studio(self) -> dict[str, str]:
        """What only the studio has: import line -> why it is needed."""
        entry, found = self.config.objective_entry, {}
        if self.config.method == "bottleneck":
            found["from jobs import bottleneck"] = "bottleneck adapters, which peft does not have"
        if self.asks_model:
            reason = "what of this model a LoRA goes to, and what is kept in fewer bits"
            found["from studio.catalogue import fused, quantising, targets, text_models"] = reason
        if self.is_packed_apart:
            found["from jobs.trainers import packed"] = "packed rows that attend each to itself without FlashAttention"
        if self.config.train_sampling_strategy == "batch_rebalance":
            found["from jobs.trainers.balanced import BalancedSteps"] = "balanced steps: rows of like length computed together"
        if entry.family is TrainerFamily.WHOLE:
            found["from jobs.trainers import whole"] = f"the start of {entry.name}: the base as chat has it, which trl would recast"
        return found


def text(script: Script) -> str:
    """The whole script."""
    parts = [
        _head(script),
        _imports(script),
        _constants(script),
        *_classes(script),
        _functions(script),
        _main(script),
        blocks.MAIN,
    ]
    stripped = [part.strip("\n") for part in parts]
    return "\n\n\n".join(["\n\n".join(stripped[:3]), *stripped[3:]]) + "\n"


def _head(script: Script) -> str:
    needs = BARE
    if used := script.of_the_studio():
        needs = f"Needs Adapter Studio (the package `jobs`) for {'; '.join(used.values())}."
    paragraphs = [
        f"{script.name}: the training of an Adapter Studio job as a TRL script.",
        needs,
        f"Run it with `python {script.stem}.py [FOLDER FOR THE ADAPTER]`. It reads, from its own folder, the rows as token ids "
        f"({script.stem}.train.jsonl and {script.stem}.eval.jsonl, with {COLUMNS[script.config.objective_entry.rows]}) and the chat "
        f"template that goes with the adapter ({script.stem}.chat_template.jinja). Token ids, because the job marks what it learns "
        "token by token. With the same versions and number of threads (OMP_NUM_THREADS) on the same processor it makes the job's "
        "adapter, bit for bit.",
    ]
    wrapped = "\n\n".join(textwrap.fill(paragraph, 110, break_on_hyphens=False) for paragraph in paragraphs)
    return f'"""{wrapped}\n"""'


def _imports(script: Script) -> str:
    entry = script.config.objective_entry
    module, _, trainer = entry.trainer.partition(":")
    names = [script.auto_class, "AutoTokenizer", "EarlyStoppingCallback", "TrainerCallback"]
    lines = ["import json", "import math", "import platform", "import sys", "from pathlib import Path", ""]
    if script.config.rope.is_set:
        names.append("AutoConfig")
    if script.is_quantised and not script.asks_model:
        names.append("BitsAndBytesConfig")
    if script.is_quantised or script.config.full_determinism:
        lines.insert(2, "import os")
    if script.is_quantised:
        # before torch is imported
        lines.append('os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # else bitsandbytes depends on a C++ compiler')
        lines.append("")
    lines += [
        "import torch",
        "from datasets import Dataset",
        *(f"from {where} import {name}" for where, name in _adapter(script.config, script.asks_model).imports),
        f"from transformers import {', '.join(sorted(names))}",
        f"from {module} import {entry.arguments.partition(':')[2]}, {trainer}",
    ]
    if used := script.of_the_studio():
        lines += ["", *used]
    return "\n".join(lines)


def _constants(script: Script) -> str:
    options = objectives.option_values(script.config)
    options.pop("save_total_limit")
    config = script.config
    return f"""
HERE = Path(__file__).resolve().parent
MODEL = {_value(config.model_name_or_path)}  # a folder, or a name on the hub
ADAPTER = Path(sys.argv[1] if len(sys.argv) > 1 else "{script.stem}-adapter")

OPTIONS = {_dictionary(options)}
DEVICE = {_value(config.device)}
DTYPE = {_value(config.dtype)}
THREADS = {config.num_threads}
EVAL_STEPS = {config.eval_steps}
TAKE_BEST = {config.load_best_model_at_end}
PATIENCE = {config.early_stopping_patience}
"""


def _classes(script: Script) -> list[str]:
    """The trainer, where trl's own does not do as it is, and the last evaluation."""
    bases = [*_mixins(script), script.config.objective_entry.trainer.partition(":")[2]]
    made = []
    if script.config.objective_entry.family is TrainerFamily.PREPARED:
        made = [blocks.PREPARED.format(bases=", ".join(bases))]
    elif len(bases) > 1:
        made = [f"class JobTrainer({', '.join(bases)}):\n    pass"]
    return [blocks.LAST_EVALUATION, *made]


def _mixins(script: Script) -> list[str]:
    found = []
    if script.is_packed_apart:
        found.append("packed.PackedSteps")
    if script.config.train_sampling_strategy == "batch_rebalance":
        found.append("BalancedSteps")
    if script.config.objective_entry.family is TrainerFamily.WHOLE:
        found.append("whole.OnTheBase")
    return found


def _functions(script: Script) -> str:
    parts = [blocks.DEVICE.format(without_bfloat16=script.without_bfloat16), blocks.ROWS.format(stem=script.stem), _ready(script.config)]
    if script.config.rope.is_set:
        parts.append(_positions(script.config))
    if script.is_quantised:
        parts.append(_quantization(script.config, script.asks_model))
    parts.append("def adapter(model):\n" + '    """What is trained."""\n' + _adapter(script.config, script.asks_model).body)
    return "\n\n\n".join(part.strip("\n") for part in parts if part)


def _positions(config: JobConfig) -> str:
    scaling, context = rope.scaling(model_config(Path(config.model_name_or_path)), config.rope)
    return blocks.POSITIONS.format(scaling=_value(scaling), context=context, windows=_value(rope.WINDOWS))


def _ready(config: JobConfig) -> str:
    if config.objective_entry.family is TrainerFamily.WHOLE:
        return "def ready(rows):\n    return rows.map(whole.columns, remove_columns=rows.column_names)"
    if config.objective_entry.rows is not RowForm.MARKED:
        return ""
    lines = [
        "def ready(rows):",
        '    """Mixed once, since trl keeps the order in which each row has its neighbour."""',
    ]
    if config.train_sampling_strategy != "sequential":
        lines.append('    rows = rows.shuffle(seed=OPTIONS["seed"]).flatten_indices()')
    if config.kto.loss_type != "kto":
        return "\n".join([*lines, "    return rows"])
    return "\n".join([*lines, "", blocks.NEIGHBOURS.strip("\n")])


def _quantization(config: JobConfig, asks_model: bool) -> str:
    made = {True: ("quantising.bits_and_bytes", ["Path(MODEL)"]), False: ("BitsAndBytesConfig", [])}
    name, first = made[asks_model]
    if config.quantization.bits == 8:
        return f"def quantization(dtype):\n    return {_call(name, *first, load_in_8bit=True)}"
    values = config.quantization.model_dump(mode="json", exclude={"bnb_4bit_compute_dtype", "load_in_8bit"})
    compute = f"torch.{config.quantization.bnb_4bit_compute_dtype}"
    if config.quantization.bnb_4bit_compute_dtype == "bfloat16":
        compute = "dtype"
    return f"def quantization(dtype):\n    return {_call(name, *first, f'bnb_4bit_compute_dtype={compute}', **values)}"


def _main(script: Script) -> str:
    entry = script.config.objective_entry
    is_plain = entry.family is TrainerFamily.SFT and not _mixins(script)
    trainer = {True: entry.trainer.partition(":")[2]}.get(is_plain, "JobTrainer")
    ready = {"": "{}"}.get(_ready(script.config), "ready({})")
    before, saving = _start(script.config)
    return blocks.MAIN_BODY.format(
        auto_class=script.auto_class,
        positions="\n        config=positions()," * script.config.rope.is_set,
        quantized="\n        quantization_config=quantization(dtype)," * script.is_quantised,
        attention=_value({"auto": None}.get(script.config.attn_implementation, script.config.attn_implementation)),
        unpacked=_experts(script) + blocks.NO_REPACKING * script.is_quantised,
        packed="    packed.use(model)\n" * script.is_packed_apart,
        padding=_value(script.padding),
        stem=script.stem,
        trainer=trainer,
        arguments=entry.arguments.partition(":")[2],
        rows=ready.format("rows"),
        held_out=ready.format("held_out"),
        before=before,
        determined=blocks.DETERMINED * script.config.full_determinism,
        scaled=blocks.SCALED * (script.config.dtype == "float16"),
        saving=saving,
    )


def _experts(script: Script) -> str:
    """The line that keeps experts in 4 bits."""
    quantization = script.config.quantization
    if not script.asks_model or not quantization.load_in_4bit:
        return ""
    kind, double = quantization.bnb_4bit_quant_type, quantization.bnb_4bit_use_double_quant
    return f'    quantising.quantise_experts(model, Path(MODEL), quant_type="{kind}", double_quant={double})\n'


def _start(config: JobConfig) -> tuple[str, str]:
    """What is done between the trainer and its training, and what saving the adapter is told."""
    before = saving = ""
    if config.method == "lora" and config.lora.loraplus_lr_ratio is not None:
        before += blocks.FASTER.format(ratio=config.lora.loraplus_lr_ratio)
    if config.method == "lora" and config.lora.init_lora_weights == "pissa":
        before, saving = before + blocks.PISSA, ", path_initial_model_for_weight_conversion=start"
    return before, saving


@dataclass(frozen=True)
class MethodText:
    """`imports`: module and name; `body`: of the function that makes peft's configuration."""

    imports: tuple[tuple[str, str], ...]
    body: str


def _adapter(config: JobConfig, asks_model: bool = False) -> MethodText:
    if asks_model and config.method == "lora":
        return _lora_of_this_model(config)
    return _METHODS[config.method](config)


def _lora_of_this_model(config: JobConfig) -> MethodText:
    """A LoRA whose targets the studio finds in the loaded model."""
    usual = _lora(config.model_copy(update={"lora": config.lora.model_copy(update={"target_modules": "TARGETS"})}))
    wanted = _value(config.lora.target_modules)
    body = usual.body.replace("target_modules='TARGETS'", "**found.options()").replace('target_modules="TARGETS"', "**found.options()")
    return MethodText(usual.imports, blocks.TARGETS.format(wanted=wanted).strip("\n") + "\n" + body)


def _peft(name: str, values: dict[str, JsonValue], *first: str) -> MethodText:
    """One class of peft with plain values; `first`: arguments as they are written."""
    return MethodText((("peft", name),), f"    return {_call(name, CAUSAL, *first, **values)}")


def _lora(config: JobConfig) -> MethodText:
    values = config.lora.model_dump(mode="json", exclude={"loraplus_lr_ratio"})
    if values["init_lora_weights"] == "default":
        values["init_lora_weights"] = True
    found = _peft("LoraConfig", values)
    if config.lora.use_dora:
        names = (*found.imports, ("peft.utils.integrations", "dequantize_module_weight"))
        found = MethodText(names, blocks.DEAD_ROWS.format(made=_call("LoraConfig", CAUSAL, **values)).strip("\n"))
    if config.lora.loraplus_lr_ratio is not None:
        found = MethodText((*found.imports, ("peft.optimizers", "create_loraplus_optimizer")), found.body)
    return found


def _ia3(config: JobConfig) -> MethodText:
    if config.ia3.target_modules == "auto":
        return _peft("IA3Config", {})
    return _peft("IA3Config", config.ia3.model_dump(mode="json"))


def _prompt_tuning(config: JobConfig) -> MethodText:
    values: dict[str, JsonValue] = {
        "num_virtual_tokens": config.prompt.num_virtual_tokens,
        "prompt_tuning_init": "SAMPLE_VOCAB",
    }
    if not config.prompt.prompt_tuning_init_text:
        return _peft("PromptTuningConfig", values)
    values |= {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": config.prompt.prompt_tuning_init_text}
    return _peft("PromptTuningConfig", values, "tokenizer_name_or_path=MODEL")


def _by_a_network(name: str, *options: str) -> Callable[[JobConfig], MethodText]:
    def made(config: JobConfig) -> MethodText:
        width = config.prompt.encoder_hidden_size or "model.config.get_text_config().hidden_size"
        values = config.prompt.model_dump(mode="json", include={"num_virtual_tokens", *options})
        return _peft(name, values, f"encoder_hidden_size={width}")

    return made


def _bottleneck(config: JobConfig) -> MethodText:
    values = config.bottleneck.model_dump(mode="json", exclude={"mh_adapter"})
    return MethodText(
        (),
        blocks.BOTTLENECK.format(
            mh_adapter=config.bottleneck.mh_adapter,
            made=_call("bottleneck.register()", CAUSAL, "target_modules=names", **values),
        ).strip("\n"),
    )


def _full(config: JobConfig) -> MethodText:
    return MethodText((("peft", "LNTuningConfig"),), blocks.EVERYTHING.strip("\n"))


_METHODS: dict[str, Callable[[JobConfig], MethodText]] = {
    "lora": _lora,
    "ia3": _ia3,
    "prompt-tuning": _prompt_tuning,
    "p-tuning": _by_a_network("PromptEncoderConfig"),
    "prefix-tuning": _by_a_network("PrefixTuningConfig", "prefix_projection"),
    "bottleneck": _bottleneck,
    "full": _full,
}


def _dictionary(values: dict[str, JsonValue]) -> str:
    """One entry per line."""
    lines = [f"    {_value(key)}: {_value(value)}," for key, value in values.items()]
    return "\n".join(["{", *lines, "}"])


def _call(name: str, *arguments: str, **values: Any) -> str:
    """A call with one argument per line, inside a function; `arguments` as they are written."""
    lines = [f"        {line}," for line in (*arguments, *(f"{key}={_value(value)}" for key, value in values.items()))]
    return "\n".join([f"{name}(", *lines, "    )"])


def _value(value: Any) -> str:
    """As a person writes it."""
    if isinstance(value, str) and repr(value) == f"'{value}'" and '"' not in value:
        return f'"{value}"'
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return repr(value)
