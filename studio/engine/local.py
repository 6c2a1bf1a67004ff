"""One base model in memory and the adapters attached to it.

Plain LoRAs share one tree of modules, so that a batch may mix them with each other and the base where the model allows it. Every
other kind gets a tree of its own over the same weights, or is a lead of tokens, and answers in passes of its own. Adapters that were
not used for longest leave when the budget is spent. Imports torch; knows nothing of requests or batches.
"""

from __future__ import annotations

import contextlib
import functools
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jobs.sections import RopeSection
from studio.catalogue import hardware, rope
from studio.catalogue.models import read_json, weight_files
from studio.engine import adapting, in_place, kinds, loading
from studio.engine.adapting import Attached, adapter_facts, fingerprint, foreign
from studio.engine.buckets import Bucket
from studio.engine.budget import Sizes
from studio.engine.prefixes import Prefixes
from studio.engine.protocol import AdapterRef, ModelFolder
from studio.engine.slots import Arrangement, Slots
from studio.engine.stepping import FAILURES, TOGETHER, Stepper
from studio.errors import ModelError, message_of

MAX_ATTACHED = 256  # beyond the budget in bytes: modules cost time too
BUDGET_SHARE = 0.25  # of what is free after the base was loaded, where nobody has set a budget
PREFIX_SHARE = 0.125  # likewise, for what was read on a GPU; on a CPU the memory is the host's, which others need
PROBE_TOKENS = 8
MIXED_SHARE = 0.1  # of the spread of the logits: what rounding may move a row beside another


def base_fingerprint(folder: Path) -> tuple[Any, ...]:
    return fingerprint(folder / "config.json", *weight_files(folder))


class LocalModel:
    """A base with its adapters. Not safe to share between threads."""

    def __init__(self, folder: ModelFolder, model: nn.Module, identity: tuple[Any, ...], budget_bytes: int) -> None:
        self.folder = folder
        self.identity = identity
        self.budget_bytes = budget_bytes
        self.device = next(model.parameters()).device
        self.attached: OrderedDict[tuple[Any, ...], Attached] = OrderedDict()
        self.prefixes = Prefixes()
        self._by_key: dict[str, Attached] = {}
        self._base = model
        self._peft: Any = None  # peft.PeftModel around a second tree, which holds the plain LoRAs
        self._slots = Slots()  # what its layers compute for each row
        self._count = 0
        self._probe: Tensor | None = None
        self.dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self._steps = Stepper(model)
        self.in_place, self._other_place = None, "its rows can't be padded"
        if self._steps.way == TOGETHER:
            self.in_place, self._other_place = in_place.of(self, self._steps.is_close)
        self._follows_length = rope.base_positions(read_json(folder.path / "config.json")).kind in rope.BY_LENGTH

    @property
    def is_exact(self) -> bool:
        """Computed in float32: batches and longer passes give the same tokens as single steps."""
        return self.dtype == torch.float32 and not self.folder.quantization

    @property
    def bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self._base.parameters())

    @property
    def adapter_bytes(self) -> int:
        return sum(attached.bytes for attached in self.attached.values())

    @property
    def adapter_names(self) -> list[str]:
        return [attached.name for attached in self.attached.values()]

    @functools.cached_property
    def sizes(self) -> Sizes:
        """What one row takes while it is answered; no keys and values where a row keeps states of one size."""
        config = self._base.config.get_text_config()
        widths = [getattr(config, name, None) or 0 for name in ("intermediate_size", "hidden_size")]
        column = 0
        if self.has_columns:
            cache = self.new_cache()
            mask = torch.ones(1, PROBE_TOKENS, dtype=torch.long, device=self.device)
            self.forward(mask, mask, mask.cumsum(1) - 1, cache, [None])
            held = [tensor for layer in cache.layers if layer.is_initialized for tensor in (layer.keys, layer.values)]
            column = sum(tensor.numel() * tensor.element_size() for tensor in held) // PROBE_TOKENS
        number = self.dtype.itemsize
        return Sizes(column, number * (3 * widths[0] + 6 * widths[1]), number)

    @property
    def recorded_steps(self) -> int:
        return 0 if self.in_place is None else len(self.in_place.steps)

    @property
    def unrecorded(self) -> str:
        """Why a GPU launches each operation of this model's steps by itself; "" on a processor, and where that needs not be so."""
        if self.device.type == "cpu" and not in_place.ON_CPU:
            return ""
        return self._other_place if self.in_place is None else self.in_place.steps.refusal

    @property
    def kept_bytes(self) -> int:
        """Keys and values that are kept between answers, or whose memory is."""
        return self.prefixes.bytes + self.taken_bytes

    @property
    def taken_bytes(self) -> int:
        """Memory for keys and values of answers that are made, whether there are any or not."""
        return 0 if self.in_place is None else self.in_place.bytes

    def recover(self) -> None:
        """After a pass that ran out of memory: give back what it has held, and what is only kept to be faster."""
        self.prefixes.clear()
        if self.in_place is not None:
            self.in_place.give_back(was_too_much=True)
        loading.give_back_memory()

    def make_do(self, room: int | None) -> None:
        """Have no more than `room` bytes for keys and values, those kept between answers too; None where nobody else needs memory."""
        before = self.kept_bytes
        share = PREFIX_SHARE if self.device.type == "cuda" else 1
        self.prefixes.bound(None if room is None else int(share * room))
        if room is not None and self.in_place is not None and self.in_place.bytes > room:
            self.in_place.give_back()
        if self.kept_bytes < before:
            loading.give_back_memory()

    def lead(self, key: str | None) -> int:
        """Columns that the adapter puts before a prompt."""
        attached = self._by_key.get(key or "")
        return attached.lead.count if attached and attached.lead else 0

    @property
    def is_padded(self) -> bool:
        """Whether rows of different length may be read together."""
        return self._steps.way.is_padded

    @property
    def has_columns(self) -> bool:
        """Whether what was read can be cut off again, and kept for the next prompt that begins alike."""
        return self._steps.way.has_columns

    @property
    def notes(self) -> tuple[str, ...]:
        """What whoever reads any answer of this model must know."""
        if not self._steps.way.is_cached:
            return (f"{self.folder.name} keeps no cache that can be used here: each token reads the whole text again.",)
        if not self.is_padded:
            return (f"{self.folder.name} answered in a pass of its own: its rows can't be padded, so they share no batch.",)
        if self._follows_length:
            return (f"{self.folder.name} answered in a pass of its own: its positions depend on how long a text is.",)
        return ()

    def new_cache(self) -> Any:
        return self._steps.new_cache()

    def follows_length(self, key: str | None) -> bool:
        """Whether positions depend on how long a text is, so that rows of other lengths and earlier beginnings would move them."""
        attached = self._by_key.get(key or "")
        if attached is None or not attached.positions:
            return self._follows_length
        return attached.follows_length

    def recalls(self, key: str | None) -> bool:
        """Whether what was read with an adapter can be kept for the next prompt that begins alike."""
        return self.has_columns and not self.lead(key) and not self.follows_length(key)

    def is_plain(self, key: str | None) -> bool:
        """Whether it is the base, or an adapter that rows of the base may stand beside."""
        return key is None or self._by_key[key].is_mixable

    def shares_batch(self, first: str | None, second: str | None) -> bool:
        """Whether rows of these two adapters (None: of the base) may be in one batch."""
        if not self.is_padded or self.follows_length(first) or self.follows_length(second):
            return False
        return first == second or all(key is None or self._by_key[key].is_mixable for key in (first, second))

    def forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Any, adapters: Sequence[str | None], keep: int = 1) -> Tensor:
        """Logits of the last `keep` columns, [rows, keep, vocabulary]. `adapters`: an attached key per row, None for the base.

        `ids` are the columns that the cache lacks; `mask` and `positions` have all of them, also those before.
        """
        attached = self._by_key.get(adapters[0] or "")
        lead = attached.lead if attached else None
        if lead is not None and lead.states and mask.shape[1] - ids.shape[1] == lead.count:
            lead.fill(cache, len(ids))
        embeddings = lead.embeddings if lead else None
        inputs = self._steps.inputs(ids, mask, positions, cache, keep, embeddings)
        model = self._model_for(adapters, inputs["input_ids"].shape[1] if "input_ids" in inputs else 1)
        with torch.inference_mode(), self._casting(adapters[0]):
            return self._steps.logits(model, inputs, cache, keep)

    @property
    def vocabulary(self) -> int:
        """Scores per token."""
        return int(self._base.get_input_embeddings().num_embeddings)

    def states(self, ids: Tensor, mask: Tensor, positions: Tensor, adapter: str | None) -> Tensor:
        """Last hidden states of texts that are read alone, [rows, columns, size]; nothing of them is kept."""
        model = self._model_for([adapter] * len(ids), ids.shape[1])
        with torch.inference_mode(), self._casting(adapter):
            return self._steps.states(model, ids, mask, positions)

    def run_in_place(self, rows: Arrangement | None, bucket: Bucket, ids: Tensor, positions: Tensor, keep: int = 1) -> Tensor:
        """As `forward`, of tokens that are written into a bucket. `rows`: their adapters, None where all are of the base."""
        model = self._base
        if rows is not None:
            self._slots.take_up(rows, ids.shape[1])
            model = self._peft.get_base_model()
        inputs = self._steps.inputs(ids, bucket.mask, positions, bucket.cache, keep)
        with torch.inference_mode():
            return self._steps.logits(model, inputs, bucket.cache, keep)

    def _casting(self, key: str | None) -> Any:
        """Kinds other than plain LoRA keep float32 weights, which a base of 16 bit does not take as they are."""
        attached = self._by_key.get(key or "")
        is_needed = attached is not None and not attached.is_shared and self.dtype in (torch.bfloat16, torch.float16)
        return torch.autocast(self.device.type, self.dtype) if is_needed else contextlib.nullcontext()

    def _model_for(self, adapters: Sequence[str | None], columns: int = 1) -> Any:
        """The tree to run: the base's, that of the plain LoRAs, where each row has the one that `adapters` names, or an adapter's own."""
        if set(adapters) == {None}:
            return self._base
        attached = self._by_key[next(key for key in adapters if key is not None)]
        if not attached.is_shared:
            return attached.tree or self._base
        self._slots.compose(adapters, columns)
        return self._peft.get_base_model()

    def has_room(self, adapter: AdapterRef, in_use: Sequence[str]) -> bool:
        """Whether `adapter` fits the budget beside those that must stay."""
        config, identity = adapter_facts(adapter)
        if identity in self.attached or not in_use:
            return True
        return self._size(adapter, config) + sum(self._by_key[key].bytes for key in set(in_use)) <= self.budget_bytes

    def attach(self, adapter: AdapterRef, in_use: Sequence[str] = ()) -> Attached:
        """Have `adapter` in memory; loads it unless it is there. Raises ModelError when it does not belong to this base.

        `in_use`: keys that must stay.
        """
        config, identity = adapter_facts(adapter)
        if identity in self.attached:
            self.attached.move_to_end(identity)
            return self.attached[identity]
        adapting.check(adapter, config, self._base)
        if config["peft_type"] == "PREFIX_TUNING" and not self.has_columns:
            raise ModelError(
                f"Adapter {adapter.name} is a prefix of keys and values, which {self.folder.name} does not keep in every layer.",
                "Train a LoRA adapter.",
            )
        config = adapting.as_loaded(adapter, config, self._base)
        size = self._size(adapter, config)
        self._make_room(size, in_use)
        self._count += 1
        key = f"adapter_{self._count}"  # module names can't hold the dots a name may have
        positions = rope.of_adapter(adapter.path)
        is_plain = kinds.is_mixable(config) and not positions.is_set
        attached = Attached(key, adapter.name, kinds.kind_of(config), size, is_shared=is_plain, is_mixable=is_plain)
        attached.positions, attached.follows_length = rope.described(positions), positions.rope_type in rope.BY_LENGTH
        if is_plain:
            self._load_lora(adapter, attached)
        else:
            self._load_alone(adapter, attached, config["peft_type"] in kinds.LEADING_KINDS, positions)
        self._by_key[key] = attached
        try:
            attached.effect = self._effect(key)
        except (RuntimeError, ValueError) as exc:  # shapes that only meet in a forward pass
            self._forget(attached)
            raise foreign(adapter, self.folder, message_of(exc)) from None
        except FAILURES as exc:  # layers whose results peft does not expect, such as routers that give several
            self._forget(attached)
            raise ModelError(
                f"peft can't run adapter {adapter.name} on {self.folder.name}: {message_of(exc)}.",
                "Train it with other target_modules.",
            ) from None
        attached.is_mixable = is_plain and self.is_padded and self._mixes(key)
        self.attached[identity] = attached
        return attached

    def _size(self, adapter: AdapterRef, config: dict[str, Any]) -> int:
        """Memory that it takes here."""
        if kinds.is_mixable(config) and not rope.of_adapter(adapter.path).is_set:
            return adapting.weight_bytes(adapter, self.dtype.itemsize)
        return adapting.weight_bytes(adapter)

    def _load_alone(self, adapter: AdapterRef, attached: Attached, leads: bool, positions: RopeSection) -> None:
        """Give an adapter a tree of its own, or make it a lead; with the positions that it was trained with."""
        base = adapting.with_positions(self._base, self.folder, positions)
        if not leads:
            attached.tree, attached.idle = adapting.attach_alone(adapter, base, self.device)
            return
        attached.lead = adapting.lead_of(adapter, base, self.device)
        if positions.is_set:
            attached.tree = base

    def _load_lora(self, adapter: AdapterRef, attached: Attached) -> None:
        """Put a plain LoRA into the tree that all of them share."""
        holder = adapting.share_weights(self._base) if self._peft is None else self._peft
        try:
            self._peft, attached.idle = adapting.attach(adapter, holder, attached.key, self.device)
        except ModelError:
            self._drop_lora(attached.key)
            raise
        self._slots.take(self._peft, attached.key, self.dtype)

    def _effect(self, key: str) -> float:
        """How far the adapter moves the base's logits on a few tokens; NaN counts as far."""
        if self._probe is None:
            self._probe = self._probe_logits(None)
        moved = (self._probe_logits(key) - self._probe).abs().max()
        return float(moved.nan_to_num(nan=float("inf")))

    def _probe_logits(self, *keys: str | None) -> Tensor:
        size = self._base.get_input_embeddings().num_embeddings
        row = [number % size for number in range(1, PROBE_TOKENS + 1)]
        ids = torch.tensor([row] * len(keys), device=self.device)
        mask = torch.ones(len(keys), PROBE_TOKENS + self.lead(keys[0]), dtype=torch.long, device=self.device)
        return self.forward(ids, mask, mask.cumsum(1) - 1, self.new_cache(), keys).float()

    def _mixes(self, key: str) -> bool:
        """Whether a row of this adapter beside one of the base says what both say alone: not where a layer flattens the batch."""
        assert self._probe is not None
        try:
            both = self._probe_logits(key, None)
        except torch.OutOfMemoryError:
            raise
        except FAILURES:
            return False
        alone = torch.cat([self._probe_logits(key), self._probe])
        return bool((both - alone).abs().mean() <= MIXED_SHARE * self._probe.std())

    def _make_room(self, needed: int, in_use: Sequence[str]) -> None:
        while self.attached and (len(self.attached) >= MAX_ATTACHED or self.adapter_bytes + needed > self.budget_bytes):
            oldest = next((i for i, attached in self.attached.items() if attached.key not in in_use), None)
            if oldest is None:
                return
            self._forget(self.attached.pop(oldest))

    def _forget(self, gone: Attached) -> None:
        del self._by_key[gone.key]
        self.prefixes.forget(gone.key)
        if self.in_place is not None:
            self.in_place.steps.forget(gone.key)
        if gone.is_shared:
            self._drop_lora(gone.key)

    def _drop_lora(self, key: str) -> None:
        if self._peft is None or key not in self._peft.peft_config:
            return
        if len(self._peft.peft_config) == 1:
            self._peft = None  # peft keeps no model without adapters
        else:
            self._peft.delete_adapter(key)
            self._slots.forget()


def load(folder: ModelFolder, *, budget_bytes: int = 0, most: int | None = None, on_cpu: bool = False) -> LocalModel:
    """Load a base. `budget_bytes`: memory for adapters, 0 for a share of what is free. The rest is as in `loading.load`."""
    identity = base_fingerprint(folder.path)
    model = loading.load(folder, most=most, on_cpu=on_cpu)
    loaded = LocalModel(folder, model, identity, budget_bytes or _budget(next(model.parameters()).device))
    loaded.prefixes = _prefixes(loaded.device)
    return loaded


def _budget(device: torch.device) -> int:
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else hardware.memory().free_bytes
    return int(BUDGET_SHARE * free)


def _prefixes(device: torch.device) -> Prefixes:
    if device.type == "cuda":
        return Prefixes(int(PREFIX_SHARE * torch.cuda.mem_get_info()[0]))
    return Prefixes()
