"""What lies beside the weights for people and programs: the model card, ollama's Modelfile, the proof as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jobs.exporters.config import PROOF, ExportConfig
from studio.catalogue import rope, rope_flags, text_models
from studio.datasets.rendering import Renderer
from studio.records import ExportFormat, ExportProof, RoundingProof

CARD, MODELFILE = "README.md", "Modelfile"
LIBRARY = {"adapter": "peft", "merged": "transformers", "gguf": "gguf", "gguf-lora": "gguf"}
SYSTEM, USER, ANSWER = "SYSTEMTEXT", "USERTEXT", "ANSWERTEXT"  # stand for what a person and a model say
USE = {
    "adapter": "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
    'base = AutoModelForCausalLM.from_pretrained("THE BASE MODEL")\nmodel = PeftModel.from_pretrained(base, "THIS FOLDER")\n```',
    "merged": "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
    'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER")\ntokenizer = AutoTokenizer.from_pretrained("THIS FOLDER")\n```',
    "gguf": "```sh\nllama-server -m {file}\nollama create my-model -f Modelfile\n```",
    "gguf-lora": "```sh\nllama-server -m THE-BASE.gguf --lora {file}\n```",
}
OPTIONS = (
    "learning_rate",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "max_length",
    "seed",
)


def write(folder: Path, config: ExportConfig, verified: ExportProof) -> None:
    """The card and the proof of an export. What is known of the run stands in the adapter's studio.json."""
    run = _run(Path(config.adapter_path))
    (folder / PROOF).write_text(json.dumps(verified.as_json(), indent=1) + "\n", encoding="utf-8")
    (folder / CARD).write_text(_card(config, run, verified), encoding="utf-8")


def write_modelfile(target: Path, file_name: str, renderer: Renderer) -> None:
    """How ollama takes the file: its template language is Go's, so the template is written only where it says the same."""
    lines = [f"FROM ./{file_name}"]
    if template := go_template(renderer):
        lines.append(f'TEMPLATE """{template}"""')
    else:
        lines.append("# ollama derives its template from the file's own; the conversation's form can't be said in its language")
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in renderer.stop_strings if text.strip()]
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")


def go_template(renderer: Renderer) -> str:
    """The chat template in ollama's terms, of one turn after the other; "" where that would not give the same text."""
    user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
    start = renderer.special_tokens.get("bos_token") or ""  # ollama writes it itself
    asked, answered = _text(renderer, [user]), _text(renderer, [user, answer, user])
    guided = _text(renderer, [{"role": "system", "content": SYSTEM}, user])
    before, _, opening = asked.partition(USER)
    turn = f"{before.removeprefix(start)}{USER}{opening}"
    closing = answered.removeprefix(f"{asked}{ANSWER}").removesuffix(turn)
    guidance = guided.removeprefix(start).removesuffix(turn)
    is_same = answered == f"{asked}{ANSWER}{closing}{turn}" and guided in (f"{start}{guidance}{turn}", f"{guidance}{turn}")
    if not is_same or guidance.count(SYSTEM) != 1 or any(mark in f"{guidance}{turn}{closing}" for mark in ("{{", '"""')):
        return ""
    system, question = guidance.replace(SYSTEM, "{{ .System }}"), turn.replace(USER, "{{ .Prompt }}")
    return f"{{{{ if .System }}}}{system}{{{{ end }}}}{{{{ if .Prompt }}}}{question}{{{{ end }}}}{{{{ .Response }}}}{closing}"


def _text(renderer: Renderer, messages: list[dict[str, str]]) -> str:
    return renderer.prompt(messages).text


def _run(adapter: Path) -> dict[str, Any]:
    try:
        value = json.loads((adapter / "studio.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _card(config: ExportConfig, run: Mapping[str, Any], verified: ExportProof) -> str:
    library = LIBRARY[config.format]
    sections = [
        f"---\nbase_model: {config.base_model}\nlibrary_name: {library}\npipeline_tag: text-generation\ntags: [adapter-studio]\n---",
        f"# {config.adapter}",
        f"{_what(config)} Made by Adapter Studio from the adapter `{config.adapter}` on `{config.base_model}`.",
        "## Use\n\n" + USE[config.format].format(file=config.file_name),
        *_long_context(config),
        "## Training\n\n" + (_list(_training(run)) or "- The adapter was brought from elsewhere; nothing is known of its training."),
        "## Data\n\n" + (_list(config.about.items()) or "- not known"),
        "## Figures\n\n" + (_list(_numbers(run.get("metrics"))) or "- none"),
        f"## Proof\n\n{proof_sentence(verified)}\n\nEvery figure of it is in `{PROOF}`.",
        *(["## Limits\n\n" + "\n".join(f"- {note}" for note in verified.notes)] if verified.notes else []),
    ]
    return "\n\n".join(sections) + "\n"


def _long_context(config: ExportConfig) -> Iterable[str]:
    """How the programs that people use are told of positions that are not the base's own."""
    positions = rope.of_adapter(Path(config.adapter_path))
    if not positions.is_set:
        return
    found = rope_flags.overrides(text_models.config_of(Path(config.base_path), positions))
    lines = [rope_flags.sentence(positions, found)]
    if config.format == ExportFormat.MERGED:
        lines += ["`config.json` says so.", f"`vllm serve THIS-FOLDER {rope_flags.vllm_flags(found, is_in_config=True)}`"]
    elif config.format == ExportFormat.ADAPTER:
        serve = f"vllm serve THE-BASE --enable-lora --lora-modules {config.adapter}=THIS-FOLDER {rope_flags.vllm_flags(found)}"
        lines += [
            "The base has to be loaded with them, or the answers are wrong without an error:",
            f"```python\n{rope_flags.transformers_lines(found, 'THE BASE MODEL')}```",
            f"```sh\n{serve}\n```",
        ]
    elif config.format == ExportFormat.GGUF:
        lines += ["The keys of the file say so.", f"`llama-server -m {config.file_name} -c {rope_flags.reads(found)}`"]
    else:
        flags = rope_flags.llama_cpp_flags(positions, found)
        lines += [
            "The base has to be run with them, or the answers are wrong without an error:",
            f"```sh\nllama-server -m THE-BASE.gguf --lora {config.file_name} {flags}\n```",
        ]
    if config.format in (ExportFormat.MERGED, ExportFormat.ADAPTER):
        lines[-1] += rope_flags.vllm_note(positions)
    yield "## Long context\n\n" + "\n\n".join(lines)


def proof_sentence(verified: ExportProof) -> str:
    """The proof for people."""
    if verified.passed is None:
        return f"Not proved: {verified.reason}"
    if not verified.passed:
        return f"Failed: {verified.reason}"
    if verified.rounding:
        return _rounded_sentence(verified, verified.rounding)
    readers = verified.readers or {}
    return (
        f"Passed: on {verified.prompts} prompts the file, read by {verified.reader}, behaves like the base with the adapter: "
        f"{verified.identical} greedy answers are identical, and its logits are off by at most {verified.worst_share:.2%} "
        f"of what the adapter changes (5% would fail).{_tied(verified)}"
        + "".join(f" {name} reads it too: off by at most {reader.worst_share:.2%}." for name, reader in readers.items())
    )


def _tied(verified: ExportProof) -> str:
    if not verified.router_ties:
        return ""
    return f" {verified.router_ties} tokens are not counted: a router was near a tie, and rounding chose another expert."


def _rounded_sentence(verified: ExportProof, rounding: RoundingProof) -> str:
    """Of a K-quant: what was proved before rounding, and what rounding did."""
    before = next(iter((verified.readers or {}).values()))
    kinds = ", ".join(f"{count} {kind}" for kind, count in rounding.tensors.items())
    weighed = f"{rounding.importance} of them weighed by the training rows" if rounding.importance else "without an importance matrix"
    return (
        f"Passed: the 16-bit file behaves like the base with the adapter (off by at most {before.worst_share:.2%} of what the adapter "
        f"changes), and every tensor of this one is that file's, rounded ({kinds}; {weighed}): off by at most "
        f"{rounding.worst_error:.1%} of its size ({rounding.worst_tensor}). Rounding moves logits by up to {verified.worst_share:.0%} of "
        f"what the adapter changes; {verified.identical} of {verified.prompts} greedy answers are identical."
    )


def _what(config: ExportConfig) -> str:
    return {
        ExportFormat.ADAPTER: "An adapter in safetensors; it needs its base model.",
        ExportFormat.MERGED: "A whole model in 16 bit, the adapter merged into its base.",
        ExportFormat.GGUF: f"A whole model as GGUF ({config.outtype}) for llama.cpp and what is built on it, the adapter merged into its base.",
        ExportFormat.GGUF_LORA: "An adapter as GGUF for llama.cpp; it needs its base model as GGUF.",
    }[config.format]


def _training(run: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    options = run.get("config") if isinstance(run.get("config"), dict) else {}
    for key in ("method", "objective"):
        if run.get(key):
            yield key, run[key]
    if options and isinstance(options.get("quantization"), dict) and options["quantization"].get("load_in_4bit"):
        yield "base while training", f"4 bits ({options['quantization'].get('bnb_4bit_quant_type', 'nf4')})"
    section = options.get(str(run.get("method")), {}) if options else {}
    for key, value in section.items() if isinstance(section, dict) else ():
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            yield key, value
    for key in OPTIONS:
        if options and options.get(key) is not None:
            yield key, options[key]


def _numbers(values: Any) -> Iterable[tuple[str, Any]]:
    return [(key, value) for key, value in values.items() if isinstance(value, (int, float))] if isinstance(values, dict) else []


def _list(items: Iterable[tuple[str, Any]]) -> str:
    return "\n".join(f"- {key}: {value:.6g}" if isinstance(value, float) else f"- {key}: {value}" for key, value in items)
