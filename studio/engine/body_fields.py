"""The fields of a request's body, in three kinds: those that change the answer, those that describe the request, and all others.

What changes an answer, under any name that a common server gives it, is honoured (studio.engine.bodies) or refused by name; a
description is accepted; anything else is named in the header Studio-Ignored. Knows no request beyond its names and values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from studio.engine.protocol import bad_request

Body = Mapping[str, Any]
IGNORED_HEADER = "Studio-Ignored"
MOST_NAMED, LONGEST_NAME = 40, 64  # of a client's own names in a header

# what the web process adds to a body, or reads of it before it hands it on
OURS = frozenset({"model", "studio", "quantization", "assistant_model"})
# names that OpenAI, vLLM, llama.cpp, Ollama, LM Studio, text-generation-inference and SGLang give to what only describes a request
DESCRIBING = frozenset({
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "request_id", "rid",
    "priority", "cache_prompt", "cache_salt", "id_slot", "slot_id", "timings_per_token", "return_progress", "keep_alive", "ttl",
    "kv_transfer_params", "guided_decoding_backend", "parallel_tool_calls", "stream_reasoning", "separate_reasoning",
})  # fmt: skip

# name -> the values with which it changes nothing; with any other it is refused, since the answer would not be what was asked for
NOTHING: tuple[Any, ...] = (None, False, "", [], {})
REFUSED: dict[str, tuple[Any, ...]] = {
    # OpenAI
    "logit_bias": (), "best_of": (1,), "suffix": (), "functions": (), "function_call": ("none", "auto"), "audio": (),
    "modalities": (["text"],), "prediction": (), "web_search_options": (), "reasoning_effort": (), "verbosity": ("medium",),
    "moderation": (), "image_generation": (),
    # vLLM and SGLang
    "use_beam_search": (), "beam_width": (1,), "length_penalty": (1,), "early_stopping": (), "bad_words": (), "allowed_token_ids": (),
    "include_stop_str_in_output": (), "no_stop_trim": (), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": (), "prompt_logprobs": (), "logits_processors": (), "add_generation_prompt": (True,),
    "add_special_tokens": (), "chat_template": (), "chat_template_kwargs": (), "documents": (), "mm_processor_kwargs": (),
    "guided_whitespace_pattern": (), "structural_tag": (), "ebnf": (), "vllm_xargs": (), "thinking_token_budget": (),
    "logprob_token_ids": (), "return_token_ids": (), "return_tokens_as_token_ids": (), "repetition_detection": (), "prompt_embeds": (),
    "custom_logit_processor": (), "custom_params": (), "lora_path": (), "stop_regex": (), "thinking": (), "enable_thinking": (),
    # llama.cpp, Ollama, LM Studio, text-generation-webui
    "mirostat": (0,), "mirostat_mode": (0,), "tfs_z": (1,), "tfs": (1,), "typical_p": (1,), "typical": (1,), "top_a": (0,),
    "top_n_sigma": (-1, 0), "dynatemp_range": (0,), "dynamic_temperature": (), "dry_multiplier": (0,), "xtc_probability": (0,),
    "repeat_last_n": (64, -1), "repetition_penalty_range": (0, 1024), "penalize_nl": (), "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,), "penalty_alpha": (0,), "guidance_scale": (1,), "negative_prompt": (), "smoothing_factor": (0,),
    "n_keep": (0,), "n_indent": (0,), "n_probs": (0,), "min_keep": (0,), "t_max_predict_ms": (0,), "samplers": (), "lora": (),
    "grammar_lazy": (), "grammar_triggers": (), "json_mode": (), "format": (), "options": (), "think": (), "reasoning": (),
    "system_message": (), "instruction_template": (), "grammar_string": (), "custom_token_bans": (), "ban_eos_token": (),
    "min_length": (0,), "num_beams": (1,), "do_sample": (True,), "eta_cutoff": (0,), "epsilon_cutoff": (0,), "adaptive_target": (-1, 0),
    # text-generation-inference
    "watermark": (), "details": (), "decoder_input_details": (), "truncate": (), "return_full_text": (), "adapter_id": (),
}  # fmt: skip


def settled(body: Body) -> dict[str, Any]:
    """The body under the names that are read here. Raises EngineError 400 where a field would change the answer and can't."""
    # an answer that goes on has no new turn to open: with continue_final_message, vLLM's clients send false
    going_on = {"add_generation_prompt": (False,)} if body.get("continue_final_message") is True else {}
    for name, harmless in (REFUSED | going_on).items():
        value = body.get(name)
        is_off = value is False and any(one is True for one in harmless)  # what is on by itself, and was turned off
        if is_off or (value not in NOTHING and value not in harmless):
            said = f"{name} is not supported here."
            raise bad_request(said, "Leave it out.", param=name, code="unsupported_parameter")
    found = dict(body)
    for name, known in RENAMED.items():
        if found.get(name) is None:
            continue
        if found.get(known) not in (None, found[name]):
            said = f"{name} and {known} are two names of one field, with different values."
            raise bad_request(said, "Give only one of them.", param=name)
        found[known] = found.pop(name)
    for name in ("max_tokens", "max_completion_tokens"):
        if found.get(name) == -1:  # as llama.cpp and LM Studio say: no limit
            found[name] = None
    wanted = {name: read(found[name]) for name, read in STRUCTURES.items() if found.get(name) not in NOTHING}
    wanted = {name: form for name, form in wanted.items() if form}
    own = [name for name in ("response_format", "grammar", "regex") if found.get(name)]
    if wanted and (len(wanted) > 1 or own):
        both = " and ".join([*wanted, *own])
        raise bad_request(f"{both} exclude each other.", "Give only one of them.", param=next(iter(wanted)))
    for form in wanted.values():
        found |= form
    return {name: value for name, value in found.items() if name not in STRUCTURES}


def ignored(body: Body, known: frozenset[str]) -> list[str]:
    """Names of fields that change nothing here, and that nobody can expect to: of no server's."""
    return sorted(name for name in body if name not in known | OURS | DESCRIBING | REFUSED.keys() | RENAMED.keys() | STRUCTURES.keys())


def header(names: list[str]) -> str:
    """The value of Studio-Ignored: names are a client's own words, so they are cut to what a header may hold."""
    shown = [re.sub(r"[^\w.\-]", "?", name, flags=re.ASCII)[:LONGEST_NAME] for name in names[:MOST_NAMED]]
    if len(names) > MOST_NAMED:
        shown.append(f"{len(names) - MOST_NAMED}-more")
    return ",".join(shown)


RENAMED = {
    "n_predict": "max_tokens",
    "max_new_tokens": "max_tokens",
    "repeat_penalty": "repetition_penalty",
    "min_new_tokens": "min_tokens",
}


def _schema(value: Any, name: str) -> dict[str, Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, Mapping):
        raise bad_request(f"{name} is no JSON schema.", "It must be an object in braces.", param=name)
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": value}}}


def _choice(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
        raise bad_request(f"{name} is no list of texts.", "Give the texts of which the answer is to be one.", param=name)
    return {"regex": "|".join(re.escape(one) for one in sorted(set(value), key=value.index))}


def _text(field: str) -> Callable[[Any, str], dict[str, Any]]:
    def read(value: Any, name: str) -> dict[str, Any]:
        if not isinstance(value, str):
            raise bad_request(f"{name} is no text.", "Correct that field.", param=name)
        return {field: value}

    return read


def _any_object(value: Any, name: str) -> dict[str, Any]:
    return {"response_format": {"type": "json_object"}} if value else {}


# what vLLM's structured_outputs may hold, and how its older fields guided_… and llama.cpp's json_schema say the same
_FORMS: dict[str, Callable[[Any, str], dict[str, Any]]] = {
    "json": _schema,
    "choice": _choice,
    "regex": _text("regex"),
    "grammar": _text("grammar"),
    "json_object": _any_object,
}


def _structured_outputs(value: Any) -> dict[str, Any]:
    name = "structured_outputs"
    if not isinstance(value, Mapping):
        raise bad_request(f"{name} is no object.", "Correct that field.", param=name)
    given = {key: one for key, one in value.items() if one not in NOTHING}
    unknown = next((key for key in given if key not in _FORMS), None)
    if unknown is not None:
        said = f"{name}.{unknown} is not supported here."
        raise bad_request(said, f"Give one of {', '.join(_FORMS)}.", param=f"{name}.{unknown}", code="unsupported_parameter")
    if len(given) > 1:
        raise bad_request(f"{name} has {' and '.join(given)}, which exclude each other.", "Give only one of them.", param=name)
    for key, one in given.items():
        return _FORMS[key](one, f"{name}.{key}")
    return {}


STRUCTURES: dict[str, Callable[[Any], dict[str, Any]]] = {
    "structured_outputs": _structured_outputs,
    "guided_json": lambda value: _schema(value, "guided_json"),
    "guided_choice": lambda value: _choice(value, "guided_choice"),
    "guided_regex": lambda value: _text("regex")(value, "guided_regex"),
    "guided_grammar": lambda value: _text("grammar")(value, "guided_grammar"),
    "guided_json_object": lambda value: _any_object(value, "guided_json_object"),
    "json_schema": lambda value: _schema(value, "json_schema"),
}
