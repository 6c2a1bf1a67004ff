"""How a loaded model is read step by step, found by asking it: steps must give what one pass over the whole text gives.

Rows of most models can be padded on the left and read together. Where that gives other numbers, each row is read by itself, on the
model's own cache (state space models and hybrids keep states that can't be cut or joined). Where even that differs, every step reads
the whole text. Imports torch; knows nothing of adapters or requests.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

from studio.catalogue import text_models

CACHE_NAMES = ("past_key_values", "cache_params")  # of the arguments of a model's forward
TOKENS = 9  # of the text that a model is asked about
PADDING = 3  # columns before the shorter of two rows
PASSES = ((0, 5), (5, 8), (8, 9))  # a prompt, several tokens at once as drafts are, one token
EXACT, ROUGH = 0.01, 0.1  # of the spread of the logits: the largest difference in float32, the mean one in 16 bits and below
# what libraries raise where a model can't be read in some way
FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError)

log = logging.getLogger("studio.engine")


@dataclass(frozen=True)
class Way:
    """How a model is read. `is_padded`: rows may be padded and read together. `is_cached`: a step reads new tokens only.

    `has_columns`: its cache holds keys and values by column, which can be cut off, joined, and kept for the next prompt.
    """

    is_padded: bool
    is_cached: bool
    has_columns: bool
    makes_cache: bool = False  # the model makes its cache itself, of a class of its own


TOGETHER = Way(True, True, True)
BY_ROW = Way(False, True, True)
ON_STATES = Way(False, True, False)
ON_OWN_STATES = Way(False, True, False, makes_cache=True)
WHOLE = Way(False, False, False)


class WholeText:
    """Stands for a cache where there is none: the tokens so far."""

    def __init__(self) -> None:
        self._ids: Tensor | None = None

    def add(self, ids: Tensor) -> Tensor:
        known = [] if self._ids is None else [self._ids]
        self._ids = torch.cat([*known, ids], dim=1)
        return self._ids


class OwnCache:
    """Holds the cache that a model makes with its first step."""

    def __init__(self) -> None:
        self.made: Any = None


class Stepper:
    """What a model's forward is given in each step. Raises whatever the model raises on its first text."""

    def __init__(self, model: nn.Module) -> None:
        self._model: Any = model
        self._accepted = text_models.forward_names(model)
        self._cache_name = next((name for name in CACHE_NAMES if name in self._accepted), "")
        self._is_exact = all(p.dtype == torch.float32 for p in model.parameters())
        self.way = WHOLE
        self.way = self._find()
        if self.way != TOGETHER:
            log.info("%s is read %s", type(model).__name__, self.way)

    def new_cache(self) -> Any:
        """What the first step of a text fills and later ones go on from."""
        if not self.way.is_cached:
            return WholeText()
        if self.way.makes_cache:
            return OwnCache()
        if self.way.has_columns:
            return DynamicCache()  # full attention for every layer: rows can be joined, and masks see to sliding windows
        return DynamicCache(config=self._model.config)

    def inputs(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, keep: int = 1, lead: Tensor | None = None) -> dict[str, Any]:
        """Arguments for the last `ids`; `mask` and `positions` have all columns. `lead`: embeddings that come before the text."""
        columns = ids.shape[1]
        if not self.way.is_cached:
            ids = cache.add(ids)
        is_start = not self.way.is_cached or mask.shape[1] - columns <= (0 if lead is None else lead.shape[1])
        given: dict[str, Any] = {"input_ids": ids}
        if lead is not None and is_start:
            embedded = self._model.get_input_embeddings()(ids)
            given = {"inputs_embeds": torch.cat([lead.expand(len(ids), -1, -1).to(embedded.dtype), embedded], dim=1)}
            columns = given["inputs_embeds"].shape[1]
        if self.way.is_padded:
            given["attention_mask"] = mask
        if self.way.is_cached:
            given[self._cache_name] = cache.made if self.way.makes_cache else cache
            given |= self._accepts(position_ids=positions[:, -columns:])
        return given | self._accepts(use_cache=self.way.is_cached, logits_to_keep=keep)

    def logits(self, model: Any, given: dict[str, Any], cache: Any, keep: int) -> Tensor:
        """Of the last `keep` columns: a pass of `model`, the tree that is read, with what `inputs` has made."""
        said = model(**given)
        if self.way.makes_cache:
            cache.made = said[self._cache_name]
        logits: Tensor = said.logits[:, -keep:]
        return logits

    def states(self, model: Any, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        """Last hidden states of whole texts, [rows, columns, size], from the part of `model` below its scores."""
        given: dict[str, Any] = {"input_ids": ids, **self._accepts(use_cache=False)}
        if self.way.is_padded:
            given |= {"attention_mask": mask, **self._accepts(position_ids=positions)}
        model = getattr(model, "get_base_model", lambda: model)()  # of an adapter's own tree
        said = getattr(model, "base_model", model)(**given)
        if getattr(said, "last_hidden_state", None) is None:
            said = model(**given, **self._accepts(logits_to_keep=1), output_hidden_states=True)
            states: Tensor = said.hidden_states[-1]
            return states
        states = said.last_hidden_state
        return states

    def _accepts(self, **values: Any) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in self._accepted}

    # asking the model

    def _find(self) -> Way:
        size = self._model.get_input_embeddings().num_embeddings
        ids = torch.tensor([[number % size for number in range(1, TOKENS + 1)]], device=next(self._model.parameters()).device)
        expected = self._logits(WHOLE, ids, keep=TOKENS)[0]
        return next((way for way in self._ways() if self._holds(way, ids, expected)), WHOLE)

    def _ways(self) -> Iterator[Way]:
        if self._cache_name == "past_key_values" and self._has_columns():
            yield TOGETHER
            yield BY_ROW
        if self._cache_name:
            yield ON_STATES
            yield ON_OWN_STATES

    def _has_columns(self) -> bool:
        """Whether the model's own cache holds nothing but keys and values. Layers that share another's hold nothing."""
        try:
            layers = DynamicCache(config=self._model.config).layers
        except FAILURES:  # a configuration that tells transformers nothing about layers
            return True
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer) for layer in layers)

    def _holds(self, way: Way, ids: Tensor, expected: Tensor) -> bool:
        ask = {True: self._padded, False: self._alone}[way.is_padded]
        try:
            return all(self.is_close(logits, expected[first : first + len(logits)]) for first, logits in ask(way, ids))
        except torch.OutOfMemoryError:
            raise
        except FAILURES as exc:
            log.info("%s can't be read %s: %s", type(self._model).__name__, way, exc)
            return False

    def _padded(self, way: Way, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of two rows of different length in one batch, with the place where they begin in the text."""
        short = torch.cat([ids.new_zeros(1, PADDING), ids[:, :-PADDING]], dim=1)
        rows, mask = torch.cat([short, ids]), torch.ones(2, TOKENS, dtype=torch.long, device=ids.device)
        mask[0, :PADDING] = 0
        cache = DynamicCache()
        for first, end in PASSES:
            logits = self._logits(way, rows[:, first:end], mask[:, :end], cache, keep=end - first)
            skipped = max(PADDING - first, 0)
            yield first + skipped - PADDING, logits[0, skipped:]
            yield first, logits[1]

    def _alone(self, way: Way, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Logits of one row, with another one read in between: a few models keep what they read in themselves.

        Nobody goes on with several tokens on a cache of states: such a prompt is read at once.
        """
        self.way = way
        cache = self.new_cache()
        for first, end in PASSES if way.has_columns else ((0, 8), (8, 9)):
            self._logits(way, ids.flip(1))
            yield first, self._logits(way, ids[:, first:end], torch.ones_like(ids[:, :end]), cache, keep=end - first)[0]

    def _logits(self, way: Way, ids: Tensor, mask: Tensor | None = None, cache: Any = None, keep: int = 1) -> Tensor:
        self.way = way
        mask = torch.ones_like(ids) if mask is None else mask
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = self.new_cache() if cache is None else cache
        with torch.inference_mode():
            return self.logits(self._model, self.inputs(ids, mask, positions, cache, keep), cache, keep).float()

    def is_close(self, found: Tensor, expected: Tensor) -> bool:
        """Whether two passes say the same but for rounding; numbers that are none are close to nothing."""
        off, spread = (found - expected).abs(), expected.std()
        if self._is_exact:
            return bool(off.max() <= EXACT * spread)
        return bool(off.mean() <= ROUGH * spread)
