"""What a folder can compress with: a causal language model, a token classifier, or neither. Reads headers, imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studio.catalogue.models import check_no_remote_code, has_tokenizer, read_json, weight_files
from studio.errors import ModelError
from studio.settings import STATIC

CAUSAL, CLASSIFIER = "causal", "token-classification"
SMALL_VOCABULARY = 8192  # below it pieces are fragments of words, and dropping pieces cuts inside words
WORDS_FOLDER = STATIC / "starter" / "words"

# model_type -> the name by which llmlingua's code decides where words begin
WORD_RULES = {"bert": "bert-base-multilingual-cased", "xlm-roberta": "xlm-roberta-large"}


@dataclass(frozen=True)
class CompressorFacts:
    """A folder that can compress. `kind` is CAUSAL or CLASSIFIER; `word_rule` is llmlingua's name for the classifier's tokenizer."""

    kind: str
    model_type: str
    vocabulary: int
    word_rule: str = ""

    @property
    def cuts_words(self) -> bool:
        """Whether dropping tokens would cut inside words most of the time."""
        return self.kind == CAUSAL and 0 < self.vocabulary < SMALL_VOCABULARY


def inspect(folder: Path) -> CompressorFacts:
    """What kind of compressor `folder` holds. Raises ModelError saying why it is none."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no model.", "Give the folder that holds config.json, a tokenizer and the *.safetensors files.")
    config = read_json(folder / "config.json")
    check_no_remote_code(folder, config)
    weight_files(folder)
    if not has_tokenizer(folder):
        raise ModelError(f"{folder} has no tokenizer.", "Download the model again, with its tokenizer files.")
    return _facts(folder, config)


def _facts(folder: Path, config: dict[str, Any]) -> CompressorFacts:
    names = [str(name) for name in config.get("architectures") or []]
    model_type, vocabulary = str(config.get("model_type", "")), int(config.get("vocab_size") or 0)
    if any("ForTokenClassification" in name for name in names):
        if model_type not in WORD_RULES:
            fix = "Use one of type bert or xlm-roberta, such as microsoft/llmlingua-2-bert-base-multilingual-cased-meetingbank."
            raise ModelError(f"{folder} is a token classifier of type {model_type!r}, whose words llmlingua can't tell apart.", fix)
        return CompressorFacts(CLASSIFIER, model_type, vocabulary, WORD_RULES[model_type])
    if any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in names):
        return CompressorFacts(CAUSAL, model_type, vocabulary)
    what = names[0] if names else "a model without named architecture"
    fix = "A compressor is a causal language model (…ForCausalLM) or a token classifier (…ForTokenClassification)."
    raise ModelError(f"{folder} is {what}, which can't compress.", fix)
