"""How other programs are told of the positions that an adapter was trained with: transformers, vLLM, llama.cpp. Text only."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from jobs.sections import RopeSection
from studio.catalogue.rope import BY_LENGTH, CONTEXT, ORIGINAL, base_positions, described

Overrides = Mapping[str, Any]
LLAMA_CPP = {
    "linear": {"factor": "--rope-scale"},
    "yarn": {
        "factor": "--rope-scale",
        ORIGINAL: "--yarn-orig-ctx",
        "beta_fast": "--yarn-beta-fast",
        "beta_slow": "--yarn-beta-slow",
    },
}


def overrides(config: Any) -> Overrides:
    """What differs in a base's configuration, by transformers' names. `config`: transformers' own, with the positions of the adapter."""
    text = config.get_text_config()
    own = {"rope_parameters": dict(text.rope_parameters), CONTEXT: text.max_position_embeddings}
    if text is config:
        return own
    return {"text_config": own}


def reads(found: Overrides) -> int:
    """Tokens at once with these overrides."""
    return base_positions(found).context


def sentence(rope: RopeSection, found: Overrides) -> str:
    """What a person has to know first."""
    return f"Trained with scaled positions ({described(rope)}): it reads {reads(found):,} tokens at once."


def transformers_lines(found: Overrides, base: str) -> str:
    """Python that loads the base as `base`, with these positions."""
    own = found.get("text_config", found)
    return (
        f'config = AutoConfig.from_pretrained("{base}")\n'
        f"text = config.get_text_config()\n"
        f"text.rope_parameters = {own['rope_parameters']!r}\n"
        f"text.{CONTEXT} = {own[CONTEXT]}\n"
        f'base = AutoModelForCausalLM.from_pretrained("{base}", config=config)\n'
    )


def vllm_flags(found: Overrides, *, is_in_config: bool = False) -> str:
    """For `vllm serve`. `is_in_config`: the model's own config.json says it already."""
    most = f"--max-model-len {reads(found)}"
    if is_in_config:
        return most
    return f"--hf-overrides {shlex.quote(json.dumps(found))} {most}"


def vllm_note(rope: RopeSection) -> str:
    """Where vLLM computes something else; "" where it does not."""
    if rope.rope_type not in BY_LENGTH:
        return ""
    return (
        f" vLLM stretches {rope.rope_type} positions for texts of every length, transformers and the studio only for those beyond the "
        "original context, so that short answers may differ."
    )


def has_llama_cpp_flags(rope: RopeSection) -> bool:
    """Whether a program of llama.cpp can be told of these positions on its command line."""
    return rope.rope_type in LLAMA_CPP and rope.attention_factor is None


def llama_cpp_flags(rope: RopeSection, found: Overrides) -> str:
    """For a program of llama.cpp that loads the base as it is. It has none for other kinds than `has_llama_cpp_flags` says."""
    values = base_positions(found).parameters
    flags = [f"{flag} {values[key]:g}" for key, flag in LLAMA_CPP[rope.rope_type].items() if values.get(key)]
    return " ".join(["--rope-scaling", rope.rope_type, *flags, f"-c {reads(found)}"])
