"""Trials of a model without weights: what peft takes, whether rows stay apart, whether padding changes answers, what the cache holds.

Vectors and small tensors are made up. Linear layers and embeddings, however large, are replaced by a cheap function of the right
shape, so that a model of any size is tried in its own width within a second; experts give back what they are given.
"""

from __future__ import annotations

import contextlib
import copy
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from studio.catalogue import anatomy, fused, text_models
from studio.catalogue.targets import with_gradient
from studio.errors import one_line

SHORT, LONG = 5, 8  # tokens of the two rows
LARGEST_COPY = 200_000_000  # parameters
WIDTH = 61  # of the cheap function: a prime, so that heads differ
UNIT = 1e-6  # the single number that stands for a left-out weight, times its place
LARGEST = 5_000_000  # numbers of a tensor that is made up
LENGTHS = (256, 512)  # of rows by which the memory of a state space is measured: its chunks divide them
SAID = 200  # characters of a library's words
CLOSE = 1e-3  # of the largest number of an answer


class CheapLayers(TorchFunctionMode):
    """Replaces products with weights that `made_up` has left out by functions that mix their inputs."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(zip(NAMES.get(func, ()), args, strict=False)) | (kwargs or {})
        weight = given.get("weight")
        if not isinstance(weight, torch.Tensor) or not weight.numel() or any(weight.stride()):
            return func(*args, **(kwargs or {}))
        seed = round(weight.as_strided((1,), (1,)).item() / UNIT)
        if func is nn.functional.embedding:
            return embedded(given["input"], weight.shape[1], seed)
        outputs = weight.shape[1]
        if func is nn.functional.linear:
            outputs = weight.shape[0]
        return mixed(given["input"], outputs, seed)


# functions through which models use their weights -> names of the arguments
NAMES: dict[Any, tuple[str, ...]] = {
    nn.functional.linear: ("input", "weight"),
    nn.functional.embedding: ("input", "weight"),
    torch.matmul: ("input", "weight"),
    torch.Tensor.matmul: ("input", "weight"),
    torch.Tensor.__matmul__: ("input", "weight"),
    torch.addmm: ("bias", "input", "weight"),
}


def mixed(values: torch.Tensor, outputs: int, seed: int) -> torch.Tensor:
    """[..., inputs] -> [..., outputs]: folded to a small width, multiplied by a random matrix, and spread again. Linear in `values`."""
    folds = -(-values.shape[-1] // WIDTH)
    padded = nn.functional.pad(values, (0, folds * WIDTH - values.shape[-1]))
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randn(folds, WIDTH, generator=generator).to(values.dtype)
    folded = (padded.unflatten(-1, (folds, WIDTH)) * signs).sum(-2) / folds**0.5
    matrix = torch.randn(WIDTH, WIDTH, generator=generator).to(values.dtype) / WIDTH**0.5
    spread = torch.randn(-(-outputs // WIDTH), WIDTH, generator=generator).to(values.dtype)
    return ((folded @ matrix).unsqueeze(-2) * spread).flatten(-2)[..., :outputs].contiguous()


def embedded(ids: torch.Tensor, width: int, seed: int) -> torch.Tensor:
    """A vector for each number."""
    places = torch.arange(1, width + 1, dtype=torch.float32)
    return torch.sin((ids.unsqueeze(-1) + 1).float() * (places * 0.7 + seed))


def made_up(model: nn.Module) -> nn.Module:
    """A copy with numbers in everything that is small. Of what CheapLayers replaces, and of experts, a single number is left."""
    model = copy.deepcopy(model)
    generator, count = torch.Generator().manual_seed(0), 0
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if buffer.device.type == "meta":
                module._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)
        for name, parameter in list(module.named_parameters(recurse=False)):
            count += 1
            if (is_replaced(module) and name == "weight") or parameter.numel() > LARGEST:
                values = torch.full((1,), count * UNIT).expand(parameter.shape)
            else:
                values = torch.randn(parameter.shape, generator=generator) * 0.1 + ("norm" in type(module).__name__.lower())
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
    for parameter in model.parameters():
        parameter._is_hf_initialized = True
    model.initialize_weights()  # tables of rotary positions and the like
    for module in model.modules():
        if any(parameter.dim() == 3 for parameter in module.parameters(recurse=False)) and not isinstance(module, nn.Conv1d):
            module.forward = lambda hidden, *_, **__: hidden.clone()
    return model.eval()


def is_replaced(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Embedding, Conv1D))


@dataclass(frozen=True)
class FailedPass:
    """What a pass has raised. `is_own`: the model's own code refuses what it is given, or how it is configured."""

    words: str
    is_own: bool

    @classmethod
    def of(cls, exc: Exception) -> FailedPass:
        last = traceback.extract_tb(exc.__traceback__)[-1]
        is_own = "transformers" in Path(last.filename).parts and str(last.line).startswith("raise ")
        return cls(one_line(exc, SAID), is_own)


@dataclass
class TwoRows:
    """What two rows of different lengths in one batch have shown."""

    picks: str = ""  # a layer that is given some of the rows' tokens only, "" for none
    ignores_padding: bool = False  # a shorter row, padded on the left, answers beside a longer one as it does alone
    is_causal: bool = True  # no token changes what was said before it
    cache: Any = None  # of one row of LONG tokens
    learning: frozenset[str] | None = None  # linear layers that a LoRA would teach something; None where the trial failed
    error: str = ""
    unread: FailedPass | None = None  # where even one row was not read
    untrained: FailedPass | None = None  # of a pass as in training


def two_rows(model: nn.Module, place: str, new_cache: Callable[[], Any]) -> TwoRows:
    """`model` as `made_up` gives it; `place`: of its blocks. Reads the rows, and then one token more from the cache."""
    found = TwoRows(cache=new_cache())
    short, long = torch.arange(3, 3 + SHORT).unsqueeze(0), torch.arange(20, 20 + LONG).unsqueeze(0)
    gap = LONG - SHORT
    both = torch.cat([torch.cat([torch.ones(1, gap, dtype=torch.long), short], 1), long])
    mask = torch.ones(2, LONG + 1, dtype=torch.long)
    mask[0, :gap] = 0
    try:
        with torch.no_grad(), CheapLayers():
            said = model(input_ids=long, use_cache=False).logits
            cut = model(input_ids=long[:, :-1], use_cache=False).logits
    except Exception as exc:  # noqa: BLE001 - whatever this architecture raises
        found.unread = FailedPass.of(exc)
        found.error = found.unread.words
        return found
    found.is_causal = _close(said[:, :-1], cut)
    try:
        with CheapLayers():
            found.learning = with_gradient(model.train(), lambda: model(input_ids=long, use_cache=False).logits)
    except Exception as exc:  # noqa: BLE001 - the same
        found.untrained = FailedPass.of(exc)
    model.eval()
    try:
        with torch.no_grad(), CheapLayers():
            alone = _steps(model, short, torch.ones(1, SHORT + 1, dtype=torch.long), new_cache())
            with watched(model, place) as shapes:
                beside = _steps(model, both, mask, new_cache())
            _read(model, long, mask[1:, :LONG], found.cache)
    except Exception as exc:  # noqa: BLE001 - the same: it is then served row by row
        found.error = one_line(exc, SAID)
        return found
    whole = {2, 2 * LONG}  # rows, or the tokens of all rows one after another
    found.picks = next((name for name, rows in shapes.items() if not rows <= whole), "")
    found.ignores_padding = all(_close(together[0], one[0]) for one, together in zip(alone, beside, strict=True))
    return found


def is_causal(model: nn.Module) -> bool:
    """Whether no token changes what is said before it, by random numbers in every layer: for code that `made_up` can't stand in for.

    True for a model that is too large to be filled.
    """
    if sum(parameter.numel() for parameter in model.parameters()) > LARGEST_COPY:
        return True
    filled = copy.deepcopy(model).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for module in filled.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.randn(parameter.shape, generator=generator) * 0.1 + ("norm" in type(module).__name__.lower())
            module._parameters[name] = nn.Parameter(values, requires_grad=False)
        for buffer in module.buffers(recurse=False):
            buffer.zero_()
    ids = torch.arange(20, 20 + LONG).unsqueeze(0)
    try:
        with torch.no_grad():
            said, cut = (filled.eval()(input_ids=one, use_cache=False).logits for one in (ids, ids[:, :-1]))
    except Exception:  # noqa: BLE001 - buffers that only its own start fills: nothing is known
        return True
    return _close(said[:, :-1], cut)


def fails_so(model: Any, failure: FailedPass, *, training: bool) -> bool:
    """Whether a model without weights fails on a text too, in the same words: then its configuration is at fault, and not what is made up here.

    Where the numbers that it lacks are asked for before, the model's own refusal counts.
    """
    ids = torch.arange(20, 20 + LONG, device="meta").unsqueeze(0)
    try:
        with torch.no_grad():
            model.train(training)(input_ids=ids, use_cache=False)
    except Exception as exc:  # noqa: BLE001 - whatever this architecture raises
        return failure.is_own or one_line(exc, SAID) == failure.words
    return False


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.float() - other.float()).abs().max() <= CLOSE * other.float().abs().max())


def _steps(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, cache: Any) -> list[torch.Tensor]:
    """What the model says behind each row, and behind one token more. `mask` counts that token too."""
    more = torch.full((len(ids), 1), 9)
    if cache is None:
        return [_read(model, ids, mask[:, :-1]), _read(model, torch.cat([ids, more], 1), mask)]
    return [_read(model, ids, mask[:, :-1], cache), _read(model, more, mask, cache)]


def _read(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor, cache: Any = None) -> torch.Tensor:
    """What the model says behind the last token of each row, asked as the engine asks it. [rows, words]"""
    takes = text_models.forward_names(model)
    options: dict[str, Any] = {"use_cache": cache is not None, "attention_mask": mask}
    if cache is not None:
        options["cache_params" if "cache_params" in takes else "past_key_values"] = cache
    if "position_ids" in takes:
        options["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    logits: torch.Tensor = model(input_ids=ids, **options).logits
    return logits[:, -1]


@contextlib.contextmanager
def watched(model: nn.Module, place: str) -> Iterator[dict[str, set[int]]]:
    """How many rows the linear layers of the blocks are given, by name."""
    rows: dict[str, set[int]] = {}
    hooks = []
    for name, module in model.named_modules():
        if name.startswith(f"{place}.") and anatomy.is_linear(module):

            def note(_: Any, inputs: Any, name: str = name) -> None:
                rows.setdefault(name, set()).add(inputs[0].shape[0])

            hooks.append(module.register_forward_pre_hook(note))
    try:
        yield rows
    finally:
        for hook in hooks:
            hook.remove()


def norm_outputs(model: nn.Module, place: str) -> dict[int, list[int]]:
    """Numbers that the norms of each block put out for a token. `model` as `made_up` gives it. Empty where a trial fails."""
    found: dict[int, list[int]] = {}
    hooks = []
    for number, block in enumerate(model.get_submodule(place)):
        for module in block.modules():
            if "norm" in type(module).__name__.lower():

                def note(_: Any, __: Any, output: Any, number: int = number) -> None:
                    if isinstance(output, torch.Tensor):
                        found.setdefault(number, []).append(output.numel() // LONG)

                hooks.append(module.register_forward_hook(note))
    try:
        with torch.no_grad(), CheapLayers():
            model(input_ids=torch.arange(20, 20 + LONG).unsqueeze(0), use_cache=False)
    except Exception:  # noqa: BLE001 - whatever this architecture raises: two_rows says so
        return {}
    finally:
        for hook in hooks:
            hook.remove()
    return found


def kept(mixers: list[nn.Module], width: int) -> int:
    """Numbers that state spaces or convolutions keep of a token for the backward pass, on the meta device; 0 where they fail."""
    found = 0
    for mixer in mixers:
        sizes = []
        for length in LENGTHS:
            saved: dict[int, torch.UntypedStorage] = {}

            def keep(tensor: torch.Tensor, saved: dict[int, torch.UntypedStorage] = saved) -> torch.Tensor:
                storage = tensor.untyped_storage()
                saved[storage._cdata] = storage
                return tensor

            try:
                with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                    mixer(torch.empty(1, length, width, device="meta", requires_grad=True))
            except Exception:  # noqa: BLE001 - a mixer of another signature is counted by its layers' shapes
                return 0
            weights = {parameter.untyped_storage()._cdata for parameter in mixer.parameters()}
            sizes.append(sum(storage.nbytes() // 4 for key, storage in saved.items() if key not in weights))
        found += (sizes[1] - sizes[0]) // (LENGTHS[1] - LENGTHS[0])
    return found


def ia3(adapted: Any, place: str) -> dict[str, str]:
    """Parts of blocks, as `number.name`, that IA3 scales -> what of them."""
    from peft.tuners.ia3 import IA3Layer

    start = f"base_model.model.{place}."
    layers = {name.removeprefix(start): module for name, module in adapted.named_modules() if isinstance(module, IA3Layer)}
    return {name: {True: "inputs", False: "outputs"}[bool(layer.is_feedforward)] for name, layer in layers.items()}


def adapted(model: nn.Module, config: Any) -> tuple[Any, str]:
    """The model with an adapter of peft's, or why it takes none. It is changed: give a copy."""
    from peft import get_peft_model

    fused.prepare_peft()
    try:
        with warnings.catch_warnings(action="ignore"):
            return get_peft_model(model, config), ""
    except Exception as exc:  # noqa: BLE001 - whatever peft says becomes one line
        return None, one_line(exc, SAID)


def takes_tokens(model: nn.Module, config: Any) -> str:
    """Why this model answers nothing behind virtual tokens; "" where it does."""
    found, reason = adapted(made_up(model), config)
    if reason:
        return reason
    try:
        with torch.no_grad(), CheapLayers():
            found(input_ids=torch.arange(3, 3 + SHORT).unsqueeze(0), attention_mask=torch.ones(1, SHORT, dtype=torch.long))
    except Exception as exc:  # noqa: BLE001 - whatever this architecture raises
        return one_line(exc, SAID)
    return ""


def reached(adapted: Any, place: str) -> set[str]:
    """Parts of blocks, as `number.name`, that a peft model trains."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    start = f"base_model.model.{place}."
    found = set()
    for name, module in adapted.named_modules():
        if not isinstance(module, BaseTunerLayer) or not name.startswith(start):
            continue
        inner = name.removeprefix(start)
        if parameter := getattr(module, "parameter_name", ""):
            while inner.endswith(".base_layer"):
                inner = inner.removesuffix(".base_layer")
            inner = f"{inner}.{parameter}"
        found.add(inner)
    return found


def cached(cache: Any, layer: int) -> tuple[int, int]:
    """Numbers that each token leaves in a layer of the cache, and numbers of its recurrent state. One row of LONG tokens was read."""
    layers = getattr(cache, "layers", [])
    if layer >= len(layers):
        return 0, 0
    per_token = state = 0
    for name, value in vars(layers[layer]).items():
        tensors = value.values() if isinstance(value, dict) else [value]
        numbers = sum(tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor) and tensor.dim() > 1)
        if name in ("keys", "values"):
            per_token += numbers // LONG
        else:
            state += numbers
    return per_token, state
