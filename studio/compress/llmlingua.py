"""The seam to llmlingua 0.2.2: its algorithms as published, on today's transformers, offline, without its side effects.

What differs from the library: the model loads from safetensors only and runs no code of its own; tokens are counted with the
tokenizer that the caller names; sentences are split here; key-value caches are converted; the rows of `[NEWi]` tokens are the
mean of the embedding rows before resizing; nothing is reseeded and nothing grows from call to call. Classifier batches are
trimmed to their text and remembered, rank perplexities too, and losses are made without copies. No method is copied.

Knows folders and texts; nothing of rates that are met, of must-keep words or of names of models.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import torch
from llmlingua import prompt_compressor as library
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForTokenClassification, AutoTokenizer, DynamicCache

from studio.catalogue import text_models
from studio.catalogue.models import context, read_json
from studio.compress import models, spans
from studio.compress.tracing import Trace
from studio.engine.stepping import Stepper
from studio.errors import StudioError

REMEMBERED_CHUNKS = 2048  # of classifier logits: about 4 KB each
REMEMBERED_RANKS = 4096
LONGEST = 32_768  # tokens that are read at once where a model names no context
ROWS = 16  # of one classifier batch


def sentences(text: str) -> list[str]:
    """Exact, ordered substrings; what separates two belongs to neither. Stands in for nltk's, which needs a download."""
    cuts = [match.end() for match in spans.SENTENCE_END.finditer(text)]
    pieces = [text[start:end].strip() for start, end in itertools.pairwise((0, *cuts, len(text)))]
    pieces = [piece for piece in pieces if piece]
    if not pieces:
        return [white_space for white_space in (text,) if white_space]
    leading = text[: len(text) - len(text.lstrip())]  # the library asserts that the first piece begins the text
    return [leading + pieces[0], *pieces[1:]]


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content).digest()


class Counter:
    """Counts tokens as one model's tokenizer makes them, without special tokens. Stands in for tiktoken."""

    def __init__(self, folder: Path) -> None:
        file = folder / "tokenizer.json"
        if file.is_file():
            fast = Tokenizer.from_file(str(file))
            fast.no_truncation()
            fast.no_padding()
            self._ids = lambda text: fast.encode(text, add_special_tokens=False).ids
        else:
            slow = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            self._ids = lambda text: slow.encode(text, add_special_tokens=False)
        self._short = lru_cache(maxsize=65536)(lambda text: self._ids(text))

    def encode(self, text: str) -> list[int]:
        read = self._short if len(text) < 32 else self._ids
        return read(text)

    def count(self, text: str) -> int:
        return len(self.encode(text))


class CachedCausal:
    """A causal model that takes and gives caches as llmlingua knows them: a list of (keys, values), whose columns it cuts.

    Hybrids and state space models keep states that can't be cut. In their place stand the ids that were read, and each window reads
    them again.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self._can_keep = "logits_to_keep" in accepted
        self._uncached = {name: False for name in ("use_cache",) if name in accepted}
        self._has_columns = Stepper(model).way.has_columns

    def last_logits(self, input_ids: Tensor, count: int) -> Tensor:
        """Logits of the last `count` tokens, [count, vocabulary], without a cache and without those that nobody asks for."""
        asked = {"logits_to_keep": count}
        if not self._can_keep:
            asked = {}
        logits: Tensor = self.model(input_ids=input_ids, **self._uncached, **asked).logits
        return logits[0, -count:].float()

    def __call__(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        if not self._has_columns:
            return self._again(input_ids, past_key_values)
        cache = DynamicCache()
        for layer, (keys, values) in enumerate(past_key_values or ()):
            cache.update(keys, values, layer)
        out = self.model(input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=use_cache)
        legacy = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return SimpleNamespace(logits=out.logits.float(), past_key_values=legacy)  # of bfloat16 the library can make no numbers

    def _again(self, input_ids: Tensor, before: Any) -> Any:
        known = [keys[:, 0, :, 0] for keys, _ in before or ()]
        ids = torch.cat([*known, input_ids], dim=1)
        columns = ids[:, None, :, None]
        logits = self.last_logits(ids, input_ids.shape[1])[None]
        return SimpleNamespace(logits=logits, past_key_values=[(columns, columns)])


class RememberingClassifier:
    """A token classifier that reads no padding and no text twice."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._known: OrderedDict[bytes, Tensor] = OrderedDict()

    def __call__(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        lengths = attention_mask.sum(dim=1).tolist()
        keys = [_digest(row[:length].cpu().numpy().tobytes()) for row, length in zip(input_ids, lengths, strict=True)]
        fresh = {key: n for n, key in enumerate(keys) if key not in self._known}
        order = sorted(fresh.values(), key=lambda n: lengths[n])
        for first in range(0, len(order), ROWS):
            self._read(input_ids, attention_mask, lengths, keys, order[first : first + ROWS])
        logits = torch.zeros(*input_ids.shape, 2, dtype=torch.float32, device=input_ids.device)
        for n, (key, length) in enumerate(zip(keys, lengths, strict=True)):
            self._known.move_to_end(key)
            logits[n, :length] = self._known[key]
        while len(self._known) > REMEMBERED_CHUNKS:
            self._known.popitem(last=False)
        return SimpleNamespace(loss=None, logits=logits)

    def _read(self, ids: Tensor, mask: Tensor, lengths: list[int], keys: list[bytes], rows: list[int]) -> None:
        width = max(lengths[n] for n in rows)
        out = self.model(input_ids=ids[rows, :width], attention_mask=mask[rows, :width].long()).logits.float()
        for n, row in zip(rows, out, strict=True):
            self._known[keys[n]] = row[: lengths[n]].clone()


class Backend(library.PromptCompressor):
    """One llmlingua compressor. `run` is the only way in; calls wait for each other."""

    def __init__(self, folder: Path, counter: Path, *, device: str | None = None, dtype: str = "float32") -> None:
        self.facts = models.inspect(folder)
        self.folder = folder
        self.use_llmlingua2 = self.facts.kind == models.CLASSIFIER
        self.retrieval_model = self.retrieval_model_name = None
        self.open_api_config: dict[str, Any] = {}
        self.cache_bos_num, self.prefix_bos_num = 10, 100
        self.oai_tokenizer = Counter(counter)
        self.lock = threading.Lock()
        self.trace: Trace | None = None
        self._ranks: OrderedDict[tuple[Any, ...], Tensor] = OrderedDict()
        self._load(device or ("cuda" if torch.cuda.is_available() else "cpu"), dtype)
        self.model_name = self.facts.word_rule or str(folder)
        if self.use_llmlingua2:
            self.init_llmlingua2()

    def _load(self, device: str, dtype: str) -> None:
        place, safe = str(self.folder), {"local_files_only": True, "trust_remote_code": False}
        config = text_models.config_of(self.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(place, **safe)
        self._cleaned_up = True
        if (self.folder / "tokenizer_config.json").is_file():
            said = read_json(self.folder / "tokenizer_config.json")
            self._cleaned_up = bool(said.get("clean_up_tokenization_spaces", True))
        options = {"dtype": getattr(torch, dtype), "use_safetensors": True, **safe}
        if self.use_llmlingua2:
            model = AutoModelForTokenClassification.from_pretrained(place, config=config, **options)
        else:
            model, _ = text_models.load(self.folder, config=config, dtype=options["dtype"])
        model = model.eval().requires_grad_(False).to(device)
        self.device = device
        self.raw_model = model
        self.model = model
        if not self.use_llmlingua2:
            self.model = CachedCausal(model)
        self.context_idxs: list[list[int]] = []
        self.max_position_embeddings = context(read_json(self.folder / "config.json")) or LONGEST

    def init_llmlingua2(self, max_batch_size: int = 50, max_force_token: int = 100) -> None:
        """As the library's, but the new rows are the mean of the old ones, and no random state is touched."""
        self.max_batch_size, self.max_seq_len, self.max_force_token = max_batch_size, 512, max_force_token
        self.special_tokens = {v for v in self.tokenizer.special_tokens_map.values() if isinstance(v, str)}
        self.added_tokens = [f"[NEW{i}]" for i in range(max_force_token)]
        known = self.tokenizer.get_vocab()
        self.tokenizer.add_tokens(self.added_tokens, special_tokens=True)
        mean = self.raw_model.get_input_embeddings().weight.mean(dim=0)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            self.raw_model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)
            rows = self.tokenizer.convert_tokens_to_ids([token for token in self.added_tokens if token not in known])
            self.raw_model.get_input_embeddings().weight[rows] = mean
        self.raw_model.requires_grad_(False)
        self.model = RememberingClassifier(self.raw_model)

    def run(self, call: str, arguments: dict[str, Any], *, as_published: bool = False) -> tuple[dict[str, Any], Trace]:
        """The library's own result of `compress_prompt` or `structured_compress_prompt`, and what it kept. Raises StudioError.

        `as_published`: text is decoded as it was when the library came out, which may move spaces that stand before marks.
        """
        arguments = {key: list(value) if isinstance(value, (list, tuple)) else value for key, value in arguments.items()}
        with self.lock, torch.inference_mode(), self._decoding(as_published):
            self.trace = trace = Trace()
            try:
                return getattr(self, call)(**arguments), trace
            except (AssertionError, IndexError, KeyError, ModuleNotFoundError, TypeError, ValueError, ZeroDivisionError) as exc:
                what = f"{type(exc).__name__}: {exc}".rstrip(": ")
                raise StudioError(
                    f"llmlingua can't compress this with these options ({what}).", "Change the text, method or options."
                ) from exc
            finally:
                self.trace = None
                self.context_idxs.clear()

    @contextlib.contextmanager
    def _decoding(self, as_published: bool) -> Iterator[None]:
        """The old decoding: a tokenizer that did not say otherwise took spaces before marks away. Today's does so only when told twice."""
        names = ("clean_up_tokenization_spaces", "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        before = {name: getattr(self.tokenizer, name, False) for name in names}
        if as_published and self._cleaned_up:
            for name in names:
                setattr(self.tokenizer, name, True)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(self.tokenizer, name, value)

    # seams of the library's steps, so that it can be told which characters were kept

    def _PromptCompressor__get_context_prob(self, context_list: list[Any], **kwargs: Any) -> Any:
        if self.trace is not None:
            self.trace.chunks = list(context_list)
        return super()._PromptCompressor__get_context_prob(context_list, **kwargs)

    def _PromptCompressor__compress(self, context_list: list[Any], **kwargs: Any) -> Any:
        if self.trace is not None:
            self.trace.choose_chunks(context_list)
        out = super()._PromptCompressor__compress(context_list, **kwargs)
        if self.trace is not None:
            self.trace.words = [list(zip(words, labels, strict=True)) for words, labels in zip(out[1], out[2], strict=True)]
        return out

    def _PromptCompressor__token_prob_to_word_prob(self, token_probs: Any, **kwargs: Any) -> Any:
        out = super()._PromptCompressor__token_prob_to_word_prob(token_probs, **kwargs)
        if self.trace is not None:
            self.trace.probabilities.append(out)
        return out

    def control_context_budget(self, *args: Any, **kwargs: Any) -> Any:
        out = super().control_context_budget(*args, **kwargs)
        if self.trace is not None:
            self.trace.contexts = list(out[2])
        return out

    def control_sentence_budget(self, context: list[str], *args: Any, **kwargs: Any) -> Any:
        out = super().control_sentence_budget(context, *args, **kwargs)
        if self.trace is not None:
            self.trace.keep_sentences(context, out[0], sentences)
        return out

    def iterative_compress_prompt(self, context: list[str], target_token: float, *args: Any, **kwargs: Any) -> Any:
        if self.trace is not None:
            self.trace.begin(context)
        ids, mask = super().iterative_compress_prompt(context, target_token, *args, **kwargs)
        if self.trace is not None:
            self.trace.end(self.tokenizer, kwargs.get("start", 0), len(context))
        return ids, mask

    def get_compressed_input(self, loss: Tensor, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Each id carries its place through the library's filter, except where that looks at the ids themselves."""
        trace = self.trace
        if trace is None or kwargs.get("keep_flag") is not None:
            if trace is not None:
                trace.is_lost = True
            return super().get_compressed_input(loss, input_ids, *args, **kwargs)
        places = torch.tensor([trace.follow(input_ids.shape[1])], device=input_ids.device)
        base = int(input_ids.max()) + 1
        out = super().get_compressed_input(loss, input_ids + base * places, *args, **kwargs)
        trace.places = (out[0][0] // base).tolist()
        return (out[0] % base, *out[1:])

    def get_ppl(self, text: str, granularity: str = "sentence", input_ids: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the library's, with fewer copies; that of a whole text is remembered, because every rate ranks the same texts."""
        if input_ids is not None and granularity == "token" and kwargs.get("return_kv"):
            return self._window(input_ids, *args, **kwargs)
        mode, place = kwargs.get("condition_mode", "none"), kwargs.get("condition_pos_id", 0)
        is_whole = input_ids is None and granularity == "sentence" and not args and not set(kwargs) - {"condition_mode", "condition_pos_id"}
        if not is_whole or mode == "before" or place < 0:
            return super().get_ppl(text, granularity, input_ids, *args, **kwargs)
        key = (_digest(text.encode("utf-8", "surrogatepass")), mode, place)
        if key not in self._ranks:
            self._ranks[key] = self._rank_loss(text, place if mode == "after" else 0)
            if len(self._ranks) > REMEMBERED_RANKS:
                self._ranks.popitem(last=False)
        return self._ranks[key]

    def _rank_loss(self, text: str, place: int) -> Tensor:
        """Mean nats of the tokens of `text` behind the one at `place`; not a number where the window ends before."""
        ids = self.tokenizer(text, return_tensors="pt")["input_ids"].to(self.device)[:, : self.max_position_embeddings]
        if ids.shape[1] - place < 2:
            return torch.tensor(float("nan"))
        logits = self.model.last_logits(ids, ids.shape[1] - place)
        return cross_entropy(logits[:-1], ids[0, place + 1 :], reduction="none").mean()

    def _window(
        self, input_ids: Tensor, attention_mask: Tensor, past_key_values: Any = None, return_kv: bool = True, end: int | None = None
    ) -> tuple[Tensor, Any]:
        """Nats of each token of the next window, and the cache behind it. Nothing is padded here."""
        past = past_key_values[0][0].shape[2] if past_key_values else 0
        end = min(input_ids.shape[1] if end is None else int(end), past + self.max_position_embeddings)
        out = self.model(input_ids[:, past:end], attention_mask=attention_mask[:, :end], past_key_values=past_key_values)
        return cross_entropy(out.logits[0, :-1], input_ids[0, past + 1 : end], reduction="none"), out.past_key_values


class _Numpy:
    """numpy for the library's code, which takes percentiles of chunks in which the tokenizer knew no word."""

    def __getattr__(self, name: str) -> Any:
        return getattr(numpy, name)

    def percentile(self, values: Any, share: float) -> Any:
        return numpy.percentile(values, share) if len(values) else 1.0


library.nltk = SimpleNamespace(sent_tokenize=sentences)
library.np = _Numpy()


def rank(backend: Backend, contexts: Sequence[str], question: str, method: str = "longllmlingua") -> list[int]:
    """The library's order of documents, the likeliest to hold the answer first."""
    with backend.lock, torch.inference_mode():
        found = backend.get_rank_results(list(contexts), question, method, "after", [0] * len(contexts))
    return [int(index) for index, _ in found]
