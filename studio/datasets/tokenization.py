"""Read a model folder's tokenizer: the `tokenizers` object, its special tokens, stop tokens and chat templates.

As transformers' AutoTokenizer finds them, without importing it (that would pull in torch). Knows nothing of rows.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from studio import processes, settings
from studio.datasets import tokenizer_limits
from studio.errors import DatasetError, ModelError

SLOW_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model", "tekken.json", "vocab.json", "vocab.txt")
SIDE_FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "config.json")
CONVERSION_LIMIT_S = 180
FIX = "Use a model folder with tokenizer.json."
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_conversion = threading.Lock()


@dataclass(frozen=True)
class ModelTokens:
    """What a model folder says about its tokens."""

    tokenizer: tokenizers.Tokenizer
    special_tokens: dict[str, str]  # bos_token, eos_token, ... as templates see them
    bos_token_id: int | None
    eos_token_id: int | None
    pad_token_id: int | None
    stop_token_ids: tuple[int, ...]
    stop_strings: tuple[str, ...]
    chat_template: str | None


def load_vocabulary(folder: Path) -> ModelTokens:
    """Raises ModelError when `folder` holds no tokenizer that can be read. Remembers the last few folders."""
    if not folder.is_dir():
        raise ModelError(f"{folder} is no folder.", "Give a model folder with tokenizer.json.")
    files = [path for path in folder.iterdir() if path.suffix in (".json", ".jinja", ".model") and path.is_file()]
    stamp = tuple(sorted((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files))
    return _load(folder.resolve(), stamp)


@lru_cache(maxsize=8)
def _load(folder: Path, _stamp: tuple[Any, ...]) -> ModelTokens:
    source = folder if (folder / "tokenizer.json").is_file() else _converted(folder)
    config = read_json(source / "tokenizer_config.json") or read_json(folder / "tokenizer_config.json")
    tokenizer = _tokenizer(source / "tokenizer.json")
    tokenizer.encode_special_tokens = bool(config.get("split_special_tokens", False))
    named = _named_tokens(folder, config)
    _add_missing_tokens(tokenizer, config, named)
    generation, model = read_json(folder / "generation_config.json"), read_json(folder / "config.json")
    bos = _token_id(tokenizer, named.get("bos_token"), generation, model, "bos_token_id")
    eos = _token_id(tokenizer, named.get("eos_token"), generation, model, "eos_token_id")
    pad = _token_id(tokenizer, named.get("pad_token"), generation, model, "pad_token_id")
    for name, token_id in (("bos_token", bos), ("eos_token", eos)):
        if name not in named:
            named[name] = (tokenizer.id_to_token(token_id) if token_id is not None else None) or ""
    stops = [eos, *_ids(generation.get("eos_token_id")), *_ids(model.get("eos_token_id"))]
    strings = generation.get("stop_strings") or []
    return ModelTokens(
        tokenizer=tokenizer,
        special_tokens=named,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad if pad is not None else eos,
        stop_token_ids=tuple(dict.fromkeys(i for i in stops if i is not None and tokenizer.id_to_token(i) is not None)),
        stop_strings=tuple(s for s in ([strings] if isinstance(strings, str) else strings) if isinstance(s, str) and s),
        chat_template=_chat_template(folder, config),
    )


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; {} where there is none. Raises ModelError when it is no JSON object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as exc:
        raise ModelError(f"{path} can't be read ({type(exc).__name__}).", "Download the model folder again.") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object.", "Download the model folder again.")
    return value


def _tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        text = path.read_text(encoding="utf-8")
        # offsets that leave out a word's leading space would leave its token out of the loss mask
        text = text.replace('"trim_offsets": true', '"trim_offsets": false').replace('"trim_offsets":true', '"trim_offsets":false')
        tokenizer = tokenizers.Tokenizer.from_str(text)
    except Exception as exc:  # noqa: BLE001 - what tokenizers raises
        raise ModelError(f"{path} can't be read: {exc}.", "Download the model folder again.") from None
    if reason := tokenizer_limits.excess(tokenizer):
        raise tokenizer_limits.LengtheningError(
            f"{path} can't be used: {reason}.", "Use the tokenizer.json that was published with the model."
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _content(token: Any) -> str | None:
    """A token is written as its text or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _named_tokens(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    entries = dict(config)
    if "added_tokens_decoder" not in config:
        entries.update(read_json(folder / "special_tokens_map.json"))
    extra = entries.get("extra_special_tokens")
    if isinstance(extra, dict):
        entries.update(extra)
    found = {name: _content(value) for name, value in entries.items() if name.endswith("_token") and not isinstance(value, bool)}
    return {name: text for name, text in found.items() if text}


def _add_missing_tokens(tokenizer: tokenizers.Tokenizer, config: dict[str, Any], named: dict[str, str]) -> None:
    # older folders list tokens in tokenizer_config.json only
    decoder = config.get("added_tokens_decoder")
    entries = sorted(decoder.items(), key=lambda item: int(item[0])) if isinstance(decoder, dict) else []
    for _, entry in entries:
        text = _content(entry)
        if text and tokenizer.token_to_id(text) is None:
            flags = {key: bool(entry[key]) for key in ("single_word", "lstrip", "rstrip", "normalized", "special") if key in entry}
            tokenizer.add_tokens([tokenizers.AddedToken(text, **flags)])
    missing = [text for text in named.values() if tokenizer.token_to_id(text) is None]
    tokenizer.add_special_tokens([tokenizers.AddedToken(text, special=True, normalized=False) for text in missing])


LARGEST_ID = 2**32  # tokenizers counts with 32 bits


def _ids(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [v for v in values if isinstance(v, int) and not isinstance(v, bool) and 0 <= v < LARGEST_ID]


def _token_id(tokenizer: tokenizers.Tokenizer, text: str | None, generation: dict[str, Any], model: dict[str, Any], key: str) -> int | None:
    if text:
        return tokenizer.token_to_id(text)
    candidates = _ids(generation.get(key)) + _ids(model.get(key))
    return next((i for i in candidates if tokenizer.id_to_token(i) is not None), None)


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """As transformers looks for it: chat_template.jinja, then tokenizer_config.json; then a processor's chat_template.json."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            raise DatasetError(f"{path} can't be read as UTF-8 text.", "Choose chatml, alpaca or plain.") from None
    for value in (config.get("chat_template"), read_json(folder / "chat_template.json").get("chat_template")):
        if isinstance(value, str) and value.strip():
            return value
        if isinstance(value, list):
            value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        if isinstance(value, dict):
            chosen = value.get("default") or next((t for t in value.values() if t), None)
            if isinstance(chosen, str):
                return chosen
    return None


def _converted(folder: Path) -> Path:
    """A folder with the tokenizer.json made of `folder`'s older tokenizer files: once, by a child, kept in the cache."""
    files = sorted(path for path in folder.iterdir() if path.name in SLOW_FILES + SIDE_FILES)
    if not any(path.name in SLOW_FILES for path in files):
        raise ModelError(f"{folder} holds no tokenizer.", "A model folder needs tokenizer.json (or tokenizer.model).")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    target = settings.load().cache / "tokenizers" / digest.hexdigest()[:32]
    with _conversion:
        if not (target / "tokenizer.json").is_file():
            _convert(folder, target)
    return target


def _convert(folder: Path, target: Path) -> None:
    command = processes.module_command("studio.datasets.slow_tokenizer", str(folder), str(target))
    local = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}
    environment = {**processes.child_environment(), **local}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=CONVERSION_LIMIT_S, env=environment, stdin=subprocess.DEVNULL, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"The tokenizer of {folder} took more than {CONVERSION_LIMIT_S} s to convert.", FIX) from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1][:300]
        raise ModelError(f"The tokenizer of {folder} could not be converted: {reason}.", FIX)
