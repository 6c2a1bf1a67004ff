"""Two-layer models of every family that transformers knows, each trained by the studio and put on a fresh base again.

`python -m tests.families FOLDER < CASES` prints what came out as JSON: a case is `{"family", "bits"}`, and "without" may name stages that it
is spared. Each family ends whole, refused in one line before anything runs, or it is a fault. `STAGES` are the checks of a trained adapter:
append to them what it has to stand too.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from jobs.config import JobConfig
from jobs.rundir import RunDir
from jobs.trainers import adapters, base, sft
from jobs.trainers.events import EventLog
from jobs.trainers.failures import explain
from jobs.trainers.stopping import StopWish
from studio.catalogue import fused, models, text_models
from studio.catalogue.models import ModelRef
from studio.datasets.rendering import Renderer
from studio.errors import ModelError
from tests.published import TEXT, WRAPPERS, publish
from tests.runs import STARTER, make_run
from tests.serving_stages import answers_alike_in_16_bits, answers_as_generate_does, merges

VOCABULARY, CONTEXT = 4096, 256  # of the starter's tokenizer; longest row
STEPS = 8
PUBLISHED = "published-"  # before the name of a wrapper of tests.published
EXACT, QUANTISED_EXPERTS = 0.0005, 0.003  # allowed difference of the held-out loss after loading again
TRL = 0.03  # and between padded rows by trl and rows alone by the model
# sizes under the names in use; each is set where a family's configuration has it
SMALL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "word_embed_proj_dim", "lru_width"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "ffn_hidden_size", "block_ff_dim", "intermediate_size_mlp"), 128),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "kv_channels", "mamba_d_head", "mamba_head_dim", "index_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx"), CONTEXT),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "index_n_heads"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "num_experts_per_token", "moe_topk"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"), 64),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "first_k_dense_replace", "n_group", "topk_group", "mamba_n_groups"), 1),
    **dict.fromkeys(("num_expert_group",), 1),
    **dict.fromkeys(("n_groups", "moe_num_shared_experts", "moe_layer_start_index", "num_dense_layers"), 1),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "sliding_window", "attention_window_size", "shared_intermediate_size"), 32),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "laurel_rank", "qk_rope_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("mamba_d_state", "ssm_state_size", "mamba_chunk_size", "chunk_size", "hidden_size_per_layer_input"), 16),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("image_size", "num_kv_shared_layers", "num_nextn_predict_layers", "num_hash_layers"), 0),
}
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "image_size": 28, "patch_size": 14, "head_dim": 16, "depth": 2, "num_heads": 2, "out_hidden_size": 64, "num_position_embeddings": 64,
    "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip
MIXED = {"linear_num_value_heads": 4, "layer_types": ["linear_attention", "full_attention"]}
SLIDING = {"layer_types": ["sliding_attention", "full_attention"]}
COMPASS = {kind: {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]} for kind in SLIDING["layer_types"]}
QWEN4 = {"indexer_n_heads": 4, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 32, "indexer_compress_ratio": 4}
DRAFTER = {**TEXT, **SLIDING, "model_type": "gemma4_text", "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2}
# what the usual sizes don't give: name -> model_type and values
SPECIAL: dict[str, tuple[str, dict[str, Any]]] = {
    "xlstm": ("xlstm", {"hidden_size": 128}),  # its keys are a multiple of 64 wide
    "falcon_alibi": ("falcon", {"alibi": True, "multi_query": False, "parallel_attn": False, "bias": True, "num_kv_heads": 4}),
    "falcon_new": ("falcon", {"alibi": False, "new_decoder_architecture": True}),
    "falcon": ("falcon", {"alibi": False, "multi_query": True, "new_decoder_architecture": False}),
    "gemma3_text": ("gemma3_text", {**SLIDING, "query_pre_attn_scalar": 16}),
    "gemma2": ("gemma2", {**SLIDING, "query_pre_attn_scalar": 16}),
    "gemma3n_text": ("gemma3n_text", {**SLIDING, "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": 128}),
    "gemma4_text": ("gemma4_text", {**SLIDING, "global_head_dim": 32}),
    "gpt_neo": ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "window_size": 32}),
    "qwen3_5_text": ("qwen3_5_text", MIXED),
    "qwen3_next": ("qwen3_next", MIXED),
    "qwen3_5_moe_text": ("qwen3_5_moe_text", MIXED),
    "granitemoehybrid": ("granitemoehybrid", {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 64}),
    "falcon_h1": ("falcon_h1", {"mamba_d_ssm": 64, "mamba_n_heads": 4}),
    "bamba": ("bamba", {"attn_layer_indices": [1]}),
    "jamba": (
        "jamba",
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False},
    ),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention"]}),
    "lfm2_moe": ("lfm2_moe", {"layer_types": ["conv", "full_attention"]}),
    "llama4_text": ("llama4_text", {"num_experts_per_tok": 1, "interleave_moe_layer_step": 1}),
    "mamba2": ("mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16}),
    "nemotron_h": ("nemotron_h", {"layers_block_type": ["mamba", "moe", "attention", "mlp"]}),
    "deepseek_v2": ("deepseek_v2", {"q_lora_rank": None, "topk_group": None, "n_group": None}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"num_key_value_heads": 1, "num_hidden_layers": 3, "block_types": ["recurrent"] * 2 + ["attention"]},
    ),
    "kimi_linear": ("kimi_linear", {"q_lora_rank": None, "linear_attn_num_heads": 4, "linear_attn_head_dim": 16}),
    "longcat_flash": ("longcat_flash", {"zero_expert_num": 0}),
    "bailing_hybrid": ("bailing_hybrid", {"head_dim": 16, "num_key_value_heads": 4}),
    "blt": ("blt", {"encoder_hash_byte_group_vocab": 50}),
    "cohere_compass_text": ("cohere_compass_text", {**SLIDING, "rope_parameters": COMPASS}),
    "dbrx": (
        "dbrx",
        {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4},
        },
    ),
    "dots1": ("dots1", {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}),
    "dots3_note": (
        "dots3_note",
        {"vision_config": {"adapter_in_dim": 32, "adapter_out_dim": 64}, "audio_config": {"adapter_input_size": 32, "adapter_out_dim": 64}},
    ),
    "gemma4_assistant": ("gemma4_assistant", {"text_config": DRAFTER}),
    "gemma4_unified_assistant": ("gemma4_unified_assistant", {"text_config": {**DRAFTER, "model_type": "gemma4_unified_text"}}),
    "qwen4_exp": ("qwen4_exp", {"text_config": QWEN4}),
    "qwen4_exp_text": ("qwen4_exp_text", QWEN4),
    "reformer": ("reformer", {"is_decoder": True, "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 16]}),
    "zamba": ("zamba", {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2}),
    "zaya": ("zaya", {"num_experts_per_tok": 1}),
    "phi3": ("phi3", {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 5}),
}


@dataclass
class Outcome:
    """What became of a family. `faults` are empty where it is whole or refused."""

    family: str
    bits: int
    refused: str = ""
    unbuilt: str = ""  # why no small model of it can be made
    faults: list[str] = field(default_factory=list)
    first_loss: float = 0.0
    last_loss: float = 0.0
    reload_difference: float = 0.0
    share: float = 0.0
    without_tokens: list[str] = field(default_factory=list)  # experts that no token has passed
    notices: list[str] = field(default_factory=list)
    same_tokens: int = 0  # in bfloat16, as transformers' generate says them, up to the first near-tie
    near_ties: int = 0  # answers that part there
    merge: str = ""  # "proved", or what is said instead

    @property
    def verdict(self) -> str:
        if self.unbuilt:
            return "unbuilt"
        if self.refused:
            return "refused"
        return {True: "fault", False: "whole"}[bool(self.faults)]


@dataclass
class Trained:
    """An adapter as it came out, and what the trained model said."""

    base: Path
    adapter: Path
    config: JobConfig
    run: RunDir
    outcome: Outcome
    held_out_loss: float
    routed: dict[str, set[int]]  # module of experts -> experts that tokens have passed


# building


def names() -> list[str]:
    """Every causal language model of transformers, the variants of SPECIAL, and wrappers as they are published."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(dict.fromkeys([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *SPECIAL, *(PUBLISHED + name for name in WRAPPERS)]))


def build(name: str, folder: Path) -> Path:
    """A base model of this family with random weights. Raises ModelError for one that can't write alone, and whatever transformers says where
    none can be made.
    """
    import torch

    if name.startswith(PUBLISHED):
        return publish(name.removeprefix(PUBLISHED), folder, seed=7)
    torch.manual_seed(7)
    config = small_config(*SPECIAL.get(name, (name, {})))
    text_models.check_own_keys(config, "This model")  # as from its config.json: transformers can't build it
    model = text_models.auto_class(config).from_config(config).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)  # else what it is multiplied with learns nothing
            elif parameter.dim() > 1:
                parameter.mul_(2.0)  # random, but alive
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(STARTER / file, folder / file)
    return folder


def small_config(kind: str, values: dict[str, Any]) -> Any:
    """The family's own configuration with small sizes; `values` win, in the parts of a multimodal one too."""
    from transformers import CONFIG_MAPPING

    family = CONFIG_MAPPING[kind]
    try:
        usual = family()
    except StrictDataclassError:  # what it would be by itself is no model
        usual = family(**values)
    sizes = _sized(usual.to_dict(), family.__name__)
    inner = {name: _sized(part.to_dict(), name) for name in family.sub_configs if (part := getattr(usual, name, None)) is not None}
    inner = {name: part | values.get(name, {}) for name, part in inner.items()}
    return family(**{**sizes, **values, **inner})


def _sized(usual: dict[str, Any], name: str) -> dict[str, Any]:
    """The sizes to set, and lists with one entry per layer cut to as many as there are."""
    is_text = not any(word in name for word in ("vision", "audio"))
    sizes = {True: SMALL, False: VISION}[is_text]
    found = {key: value for key, value in sizes.items() if isinstance(usual.get(key), int) or (usual.get(key, 0) is None and key in KNOWN)}
    if "kv_lora_rank" in usual:  # latent attention has keys of its own for every head
        found |= {key: size for key, size in (("num_key_value_heads", 4), ("head_dim", 8)) if key in found}
    layers = next((usual[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(usual.get(key), int)), 0)
    for key, value in usual.items():
        if isinstance(value, list) and len(value) == layers > 2:
            kinds = list(dict.fromkeys(map(str, value)))
            found[key] = [next(one for one in value if str(one) == kind) for kind in (kinds * 2)[:2]]
    if "model_type" in usual:
        found["model_type"] = usual["model_type"]
    if is_text:
        ends = {"pad_token_id": 0, "bos_token_id": 5, "eos_token_id": 5}
        found |= {key: value for key, value in ends.items() if key in usual}
    return {key: value for key, value in found.items() if value != 0 or key in usual}


KNOWN = ("num_experts_per_tok", "head_dim", "num_key_value_heads", "intermediate_size")  # set where the family leaves them to be derived


# training


def outcome(name: str, root: Path, bits: int, without: Sequence[str] = ()) -> Outcome:
    """Build, launch, train, and every stage but those of `without`."""
    found = Outcome(name, bits)
    try:
        path = build(name, root / "base")
    except ModelError as exc:
        found.refused = str(exc)
        return found
    except Exception as exc:  # noqa: BLE001 - whatever transformers says of a configuration made up here
        found.unbuilt = " ".join(f"{type(exc).__name__}: {exc}".split())[:200]
        return found
    run, config = launch(root, path, bits)
    found.refused = refusal(path, config)
    if found.refused:
        return found
    try:
        trained = train(run, config, path, root / "adapter", found)
        for stage in STAGES:
            if stage.__name__ not in without:
                found.faults += stage(trained)
    except Exception as exc:  # noqa: BLE001 - a fault of the family, named in the table
        traceback.print_exc()
        failure = explain(exc, config)
        found.faults.append(f"{type(exc).__name__}: {failure.reason} {failure.fix}"[:400])
    return found


def launch(root: Path, path: Path, bits: int) -> tuple[RunDir, JobConfig]:
    """A run of STEPS steps on a few rows."""
    options = {
        "quantization.load_in_4bit": bits == 4,
        "lora.r": 4,
        "lora.lora_dropout": 0.0,
        "max_length": 64,
        "max_steps": STEPS,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "save_steps": 100,
        "eval_steps": STEPS,
        "load_best_model_at_end": False,
        "sample_answers": 1,
    }
    run = make_run(root / "run", recipe="lora-sft", model=path, rows=32, **options)
    return run, JobConfig.model_validate_json(run.config.read_text(encoding="utf-8"))


def refusal(path: Path, config: JobConfig) -> str:
    """Why this model is refused when it is added or launched, in one line; "" where it is not."""
    from studio.catalogue import probes, probing
    from studio.services.launching import standing_against

    facts = models.inspect_folder(path)
    if not facts.loadable:
        return f"{facts.reason} {facts.fix}"
    try:
        probe = probing.probe(models.read_json(path / "config.json"), "This model")  # as its child does when a model is added
    except Exception as exc:  # noqa: BLE001 - the child says it in one line too
        return " ".join(str(exc).split())[:300]
    probes.keep(probe.digest, probe)  # what asks for it later starts no child either
    return " ".join(str(problem) for problem in standing_against(config, ModelRef("family", path), probe))


def train(run: RunDir, config: JobConfig, path: Path, folder: Path, found: Outcome) -> Trained:
    """Train as a job does, and note what the trained model says of the held-out rows."""
    routed: dict[str, set[int]] = {}
    said: dict[str, float] = {}
    log = EventLog(run.attempt(1).events)
    save, load = adapters.save, base.load

    def watched_save(target: Path, model: Any, *rest: Any) -> None:
        if target == folder:
            said["loss"] = held_out_loss(model, run, config)
        save(target, model, *rest)

    def watched_load(*arguments: Any) -> Any:
        model = load(*arguments)
        _listen(model, routed)
        return model

    adapters.save, base.load = watched_save, watched_load
    try:
        sft.train(run, config, folder, log, StopWish())
    finally:
        adapters.save, base.load = save, load
        log.close()
    events = run.attempt(1).read_events(0)[0]
    losses = [event["loss"] for event in events if event["type"] == "progress"]
    found.first_loss, found.last_loss = losses[0], min(losses[-3:])  # one step of a few rows may be an unlucky one
    found.notices = [event["text"] for event in events if event["type"] == "notice"]
    return Trained(path, folder, config, run, found, said["loss"], routed)


def _listen(model: Any, routed: dict[str, set[int]]) -> None:
    """Note which experts are given tokens while training: those that something is learned from, since in the last block others teach nothing."""
    import torch

    for name, module in model.named_modules():
        if not any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)) and not hasattr(module, "parametrizations"):
            continue

        def hook(module: Any, inputs: Any, options: Any, output: Any, name: str = name) -> None:
            numbers = [one for one in (*inputs, *options.values()) if isinstance(one, torch.Tensor) and one.dtype == torch.int64]
            if not module.training or not numbers:
                return
            chosen = numbers[0].flatten(0, -2)

            def note(gradient: Any) -> None:
                teaches = gradient.flatten(0, -2).abs().sum(-1) > 0
                passed = chosen[teaches] if len(teaches) == len(chosen) else chosen
                routed.setdefault(name, set()).update(passed.unique().tolist())

            if isinstance(output, torch.Tensor) and output.requires_grad:
                output.register_hook(note)
            else:
                routed.setdefault(name, set()).update(chosen.unique().tolist())

        module.register_forward_hook(hook, with_kwargs=True)


def held_out_loss(model: Any, run: RunDir, config: JobConfig) -> float:
    """Mean loss of the learned tokens of the held-out rows, each row alone, as the model is computed while training."""
    import torch

    from jobs.trainers.probing import surprise, undisturbed
    from jobs.trainers.questions import questions

    renderer = Renderer.load(Path(config.model_name_or_path), config.chat_template, config.row_options())
    rows = [(one.row, one.learned) for one in questions(run.eval, renderer, config.max_length, 100)]
    with undisturbed(model):
        found = [surprise(model, [row], renderer, _autocast(torch, model), lambda: True)[0] for row in rows]
    return sum(loss for loss, _ in found) / sum(count for _, count in found)


def _autocast(torch: Any, model: Any) -> Callable[[], Any]:
    return lambda: torch.autocast(model.device.type, torch.bfloat16)


# stages


def loss_is_the_models_own(trained: Trained) -> list[str]:
    """trl computes the loss from the last hidden states; the model's own logits have to say the same."""
    events = trained.run.attempt(1).read_events(0)[0]
    loss = [event["loss"] for event in events if event["type"] == "eval"][-1]
    if abs(loss - trained.held_out_loss) <= TRL:
        return []
    return [f"trl's loss of the held-out rows is {loss:.3f}, by the model's own logits it is {trained.held_out_loss:.3f}"]


def loss_falls(trained: Trained) -> list[str]:
    found = trained.outcome
    if found.last_loss < found.first_loss:
        return []
    return [f"the loss did not fall: {found.first_loss:.3f}, then {found.last_loss:.3f}"]


def every_target_learns(trained: Trained) -> list[str]:
    """The second matrix of every target has left zero; of experts that of each which was given tokens."""
    from safetensors.torch import load_file

    state = load_file(trained.adapter / "adapter_model.safetensors")
    card = json.loads((trained.adapter / "studio.json").read_text(encoding="utf-8"))
    trained.outcome.share = card["targets"]["share"]
    faults = []
    for name, tensor in state.items():
        if ".lora_B." not in name:
            continue
        layer = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
        experts = layer.replace(".base_layer", "")
        number = tensor.shape[1] // trained.config.lora.r
        if number > 1:
            learned = tensor.reshape(tensor.shape[0], -1, number).abs().sum((0, 1)) > 0
            given = trained.routed.get(experts)
            idle = {expert for expert in range(number) if not learned[expert]}
            if given is not None and not idle & given:
                trained.outcome.without_tokens += [f"{layer} {expert}" for expert in sorted(idle)]
            elif idle:
                faults.append(f"experts {sorted(idle)} of {layer} have not changed, and tokens passed {given}")
        elif not tensor.abs().sum():
            faults.append(f"{layer} has not changed")
    return faults


def loads_again(trained: Trained) -> list[str]:
    """On a fresh base in the same precision the held-out rows have the same loss."""
    from peft import PeftModel

    log = EventLog(trained.run.path / "again.jsonl")
    fresh = base.load(trained.config, base.choose_device(trained.config, log))
    log.close()
    fused.prepare_peft()
    with _no_warnings_about_missing_tensors():
        again = held_out_loss(PeftModel.from_pretrained(fresh, str(trained.adapter)), trained.run, trained.config)
    trained.outcome.reload_difference = abs(again - trained.held_out_loss)
    return _compared(trained, again, "on a fresh base")


def loads_by_peft_alone(trained: Trained) -> list[str]:
    """The same by peft as it is, in a process that the studio has prepared nothing in, on a base in 16 bits."""
    values = json.loads((trained.adapter / "adapter_config.json").read_text(encoding="utf-8"))
    says_so = "by peft alone" in (trained.adapter / "README.md").read_text(encoding="utf-8")
    if trained.outcome.bits == 4 or not values.get("target_parameters") or says_so:
        return []
    child = _plain_peft()
    assert child.stdin and child.stdout
    print(json.dumps([str(trained.run.path), str(trained.adapter)]), file=child.stdin, flush=True)
    answer = json.loads(child.stdout.readline() or '"its process ended"')
    if isinstance(answer, str):
        return [f"peft alone does not load it: {answer[:200]}"]
    return _compared(trained, answer, "by peft alone")


@cache
def _plain_peft() -> subprocess.Popen[str]:
    """One process for all, since it imports torch; it ends with the pipe."""
    command = [sys.executable, "-c", "from tests.families import answer_losses; answer_losses()"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def answer_losses() -> None:
    """For each line of stdin, a run and an adapter, the held-out loss of the adapter that plain peft has loaded, or why it has not."""
    from peft import PeftModel

    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        run, adapter = json.loads(line)
        made = RunDir(Path(run))
        config = JobConfig.model_validate_json(made.config.read_text(encoding="utf-8"))
        log = EventLog(made.path / "alone.jsonl")
        found: float | str
        try:
            fresh = base.load(config, base.choose_device(config, log))
            with _no_warnings_about_missing_tensors():
                found = held_out_loss(PeftModel.from_pretrained(fresh, adapter), made, config)
        except Exception as exc:  # noqa: BLE001 - whatever peft says
            traceback.print_exc()
            found = f"{type(exc).__name__}: {exc}"
        print(json.dumps(found), file=answers, flush=True)


@contextmanager
def _no_warnings_about_missing_tensors() -> Iterator[None]:
    """peft only warns where tensors find no place."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(missing adapter keys|unexpected).*")
        yield


def _compared(trained: Trained, loss: float, how: str) -> list[str]:
    has_experts = any(".base_layer.lora_" in name for name in _tensor_names(trained.adapter))
    allowed = QUANTISED_EXPERTS if has_experts and trained.outcome.bits == 4 else EXACT
    if how == "by peft alone":
        allowed = QUANTISED_EXPERTS  # which adds the update of dense layers beside experts to weights of 16 bits
    if abs(loss - trained.held_out_loss) <= allowed:
        return []
    return [f"the held-out loss {how} is {loss:.4f}, it was {trained.held_out_loss:.4f}"]


def _tensor_names(adapter: Path) -> list[str]:
    return [name for name, _, _ in models.tensors(adapter / "adapter_model.safetensors")]


STAGES: list[Callable[[Trained], list[str]]] = [
    loss_is_the_models_own,
    loss_falls,
    every_target_learns,
    loads_again,
    loads_by_peft_alone,
    answers_as_generate_does,
    answers_alike_in_16_bits,
    merges,
]


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    answers, sys.stdout = sys.stdout, sys.stderr
    root, found = Path(sys.argv[1]), []
    for case in json.load(sys.stdin):
        folder = root / f"{case['family']}-{case['bits']}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        one = outcome(case["family"], folder, case["bits"], case.get("without", ()))
        found.append({**asdict(one), "verdict": one.verdict})
        print(json.dumps(found[-1]), file=sys.stderr, flush=True)
        if not case.get("keep"):
            shutil.rmtree(folder, ignore_errors=True)
    json.dump(found, answers)


if __name__ == "__main__":
    main()
