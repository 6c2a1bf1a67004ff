"""Asking a model in the middle of its training without a trace: greedy answers, and how likely it finds given tokens.

`undisturbed` puts back all that asking could change: random numbers, training mode of every module, which weights learn.
Knows nothing of rows, events or steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria

from jobs.trainers.whole_step import RandomStates
from studio.datasets.rendering import Renderer

BATCH_TOKENS = 1024  # judged at once: the logits of a large vocabulary take a megabyte for two or three of them
Autocast = Callable[[], AbstractContextManager[Any]]


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards everything is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    states = RandomStates.take()
    text = model.config.get_text_config()
    gives_routers = getattr(text, "output_router_logits", None)
    try:
        if gives_routers:
            text.output_router_logits = False  # a model that answers has them of one token only
        model.eval()
        with torch.no_grad():  # not inference_mode: what a model caches on the way must not be barred from training
            yield
    finally:
        if gives_routers:
            text.output_router_logits = True
        for module, mode in modes:
            module.training = mode
        for parameter, learns in learning:
            parameter.requires_grad_(learns)
        states.put_back()


class _Wish(StoppingCriteria):
    """Ends a generation when somebody wants the training to stop."""

    def __init__(self, is_set: Callable[[], bool]) -> None:
        self._is_set = is_set

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return torch.full((input_ids.shape[0],), self._is_set(), device=input_ids.device, dtype=torch.bool)


def answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    renderer: Renderer,
    length: int,
    seconds: float,
    autocast: Autocast,
    stop: Callable[[], bool],
) -> list[str]:
    """The likeliest answer to each prompt, in one batch: at most `length` tokens, and begun tokens end after `seconds`."""
    width = max(len(prompt) for prompt in prompts)
    padding = _padding(renderer)
    ids = torch.tensor([[padding] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=model.device)
    ends = _ends(renderer)
    how = GenerationConfig(
        max_new_tokens=length,
        max_time=seconds,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=True,
        pad_token_id=padding,
        eos_token_id=ends or None,
        bos_token_id=renderer.bos_token_id,
    )
    with autocast():
        made = model.generate(input_ids=ids, attention_mask=mask, generation_config=how, stopping_criteria=[_Wish(stop)])
    return [_text(row[-(made.shape[1] - width) :] if made.shape[1] > width else [], renderer, ends) for row in made.tolist()]


def surprise(
    model: Any, rows: Sequence[tuple[list[int], list[bool]]], renderer: Renderer, autocast: Autocast, go_on: Callable[[], bool]
) -> list[tuple[float, int]]:
    """For each row the negative log-likelihood of its learned tokens, summed, and their number; fewer rows when `go_on` says no."""
    found: list[tuple[float, int]] = []
    for batch in _batches(rows):
        if not go_on():
            break
        width, padding = max(len(ids) for ids, _ in batch), _padding(renderer)
        ids = torch.tensor([ids + [padding] * (width - len(ids)) for ids, _ in batch], device=model.device)
        mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch], device=model.device)
        with autocast():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, -width:]  # behind virtual tokens
        for number, (tokens, learned) in enumerate(batch):
            places = torch.tensor([place for place in range(1, len(tokens)) if learned[place]], device=model.device)
            losses = torch.nn.functional.cross_entropy(logits[number, places - 1].float(), ids[number, places], reduction="sum")
            found.append((float(losses), len(places)))
    return found


def _batches(rows: Sequence[tuple[list[int], list[bool]]]) -> Iterator[list[tuple[list[int], list[bool]]]]:
    batch: list[tuple[list[int], list[bool]]] = []
    for row in rows:
        if batch and (len(batch) + 1) * max(len(row[0]), *(len(ids) for ids, _ in batch)) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _padding(renderer: Renderer) -> int:
    return next((number for number in (renderer.pad_token_id, renderer.eos_token_id) if number is not None), 0)


def _ends(renderer: Renderer) -> list[int]:
    own = [] if renderer.eos_token_id is None else [renderer.eos_token_id]
    return list(dict.fromkeys([*own, *renderer.stop_token_ids]))


def _text(ids: Sequence[int], renderer: Renderer, ends: Sequence[int]) -> str:
    end = next((place for place, number in enumerate(ids) if number in ends), len(ids))
    text = renderer.decode(ids[:end])
    cuts = [place for stop in renderer.stop_strings if (place := text.find(stop)) >= 0]
    return text[: min(cuts, default=len(text))].strip()
