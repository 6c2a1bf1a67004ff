"""The loss from the model's own logits, where trl's way around them says something else.

trl takes the last hidden states and the output layer, and the few factors that it knows, so that the logits of a whole batch never lie
in memory. Architectures with a step of their own between the two would learn for other answers than they give. Imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch.nn import functional

from jobs.trainers.probing import undisturbed

CLOSE = 0.01  # of a mean loss: rounding in 16 bits is a tenth of it
ALIKE = 0.1  # of the spread of the tokens' losses: a factor on the logits shows there also in a model that has learned nothing yet
SURE, SMALLEST = 64.0, 1e-3  # logits: a large one, and one below which a model says nothing


def use_where_needed(model: Any, autocast: AbstractContextManager[Any]) -> bool:
    """`model`: as a trainer of trl has prepared it; `autocast`: in which it trains. Whether its own logits are used from here on."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "forward" not in vars(inner):  # this trainer computes logits as everybody does
        return False
    if inner.base_model is inner:  # Llama 4: its own name for its layers is not where they are, and trl would ask the whole model
        _replace(inner)
        return True
    with undisturbed(inner), autocast:
        logits, is_alike = _compare(inner)
        if is_alike:
            with _raised(inner, logits):
                _, is_alike = _compare(inner)
    if is_alike:
        return False
    _replace(inner)
    return True


def _compare(inner: Any) -> tuple[torch.Tensor, bool]:
    """The model's own logits of a short text, and whether trl's losses of it are the same."""
    ids = torch.arange(1, 17, device=inner.device).view(2, 8)
    options = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    by_trl = -inner(**options, labels=ids, fused_lm_head=True).log_probs
    logits = inner(**options, use_cache=False).logits
    return logits, _agree(by_trl.flatten().float(), _losses(logits[:, :-1], ids[:, 1:]))


@contextmanager
def _raised(inner: Any, logits: torch.Tensor) -> Iterator[None]:
    """Has the output layer give logits as large as those of a model that is sure: a cap on them does not show in small ones."""
    weight = inner.get_output_embeddings().weight
    largest = float(logits.float().abs().max())
    factor = 1.0
    if weight.is_floating_point() and SMALLEST < largest < SURE:  # neither packed in 4 bits nor a number that is none
        factor = 2.0 ** math.floor(math.log2(SURE / largest))
    weight.data.mul_(factor)  # by a power of two, which is undone without rounding
    torch.clear_autocast_cache()  # which may hold the weight as it was
    try:
        yield
    finally:
        weight.data.div_(factor)
        torch.clear_autocast_cache()


def _losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")


def _agree(found: torch.Tensor, own: torch.Tensor) -> bool:
    """Whether two readings of the tokens' losses differ by rounding only."""
    is_close = (found.mean() - own.mean()).abs() <= CLOSE * own.mean().abs().clamp(min=1)
    return bool(is_close and (found - own).abs().mean() <= ALIKE * own.std())


def _replace(inner: Any) -> None:
    from trl.trainer.utils import FusedCausalLMOutput

    plain = inner.forward

    def forward(
        *args: Any, fused_lm_head: bool = False, labels: Any = None, shift_labels: Any = None, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        if not fused_lm_head:
            given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
            return plain(*args, **{name: value for name, value in given.items() if value is not None}, **kwargs)
        logits = plain(*args, **{**kwargs, "use_cache": False}).logits.float()
        if shift_labels is None:
            logits, shift_labels = logits[:, :-1], labels[:, 1:]
        mask = shift_labels != -100
        chosen = shift_labels.clamp(min=0)
        every = logits.log_softmax(-1)
        log_probs = every.gather(-1, chosen.unsqueeze(-1)).squeeze(-1).masked_fill(~mask, 0)
        with torch.no_grad():
            entropy = -(every.exp() * every).sum(-1).masked_fill(~mask, 0)
            is_top1 = (logits.argmax(-1) == chosen).to(logits.dtype).masked_fill(~mask, 0)
        count = mask.sum().clamp(min=1)
        if num_items_in_batch is not None:
            count = num_items_in_batch
        return FusedCausalLMOutput(
            loss=-log_probs.sum() / count,
            log_probs=log_probs,
            entropy=entropy,
            log_sum_sq_probs=(2 * every).logsumexp(-1).masked_fill(~mask, 0),
            mean_logits=logits.mean(-1).masked_fill(~mask, 0),
            is_top1=is_top1,
            label_mask=mask,
            aux_loss=None,
        )

    inner.forward = forward
