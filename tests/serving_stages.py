"""Checks of a trained adapter for `tests.families`: it answers in the engine as transformers and peft do, and merges with a proof."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.engine.answer import GeneratedAnswer

PROMPTS = ([5, 6, 7, 8, 9, 20, 21], list(range(30, 60)), [100, 200, 300])
TOKENS = 12


def answer(ids: Sequence[int]) -> GeneratedAnswer:
    """An answer to be made: the likeliest TOKENS tokens, whatever they are."""
    from studio.engine.protocol import ModelFolder
    from studio.engine.speculation import Gain
    from studio.engine.text import AnswerText
    from studio.types import GenerationParams

    params, text = GenerationParams(temperature=0, max_new_tokens=TOKENS), AnswerText(lambda ids: "", [])
    made = GeneratedAnswer(ModelFolder("m", Path()), None, list(ids), TOKENS, params, 0, frozenset(), text, lambda event: None)
    made.gain = Gain()
    return made


def write(model: Any, asked: Sequence[tuple[Sequence[int], str | None]], *, one_by_one: bool = False) -> tuple[list[Any], int]:
    """What each row says, and in how many batches they were at most; `one_by_one`: they join between two steps."""
    from studio.engine.decoding import Passes

    passes, made, most = Passes(model), [answer(ids) for ids, _ in asked], 0
    if one_by_one:
        for one, (_, key) in zip(made, asked, strict=True):
            passes.join([one], [key])
            passes.step()
    else:
        passes.join(made, [key for _, key in asked])
    while passes.answers:
        most = max(most, len(passes._batches))
        passes.step()
    assert all(one.error is None for one in made)
    return [one.ids for one in made], most


def generated(model: Any, ids: Sequence[int]) -> list[int]:
    """What transformers' own generate says."""
    import torch

    given = torch.tensor([list(ids)])
    with torch.inference_mode():
        said = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            eos_token_id=None, pad_token_id=0, repetition_penalty=1.0,
        )  # fmt: skip
    return list(said[0].tolist()[len(ids) :])


def answers_as_generate_does(trained: Any) -> list[str]:
    """In float32, alone and beside the base: the same tokens."""
    import torch

    from studio.catalogue import attaching, text_models
    from studio.engine import local
    from studio.engine.protocol import AdapterRef, ModelFolder

    model = local.load(ModelFolder("family", trained.base))
    attached = model.attach(AdapterRef("mine", trained.adapter))
    plain = text_models.load(trained.base, dtype=torch.float32)[0].eval()
    expected = [generated(plain, ids) for ids in PROMPTS]
    adapted, _ = attaching.attach(plain, trained.adapter, "mine", "cpu")
    expected += [generated(adapted.eval(), ids) for ids in PROMPTS]
    asked = [(ids, key) for key in (None, attached.key) for ids in PROMPTS]
    faults = [
        f"{'alone' if count == 1 else 'together'}, the answer to prompt {number % 3} {'with the adapter' if number > 2 else 'of the base'} differs"
        for count, said in ((1, [write(model, [one])[0][0] for one in asked]), (2, write(model, asked)[0]))
        for number, (found, right) in enumerate(zip(said, expected, strict=True))
        if found != right
    ]
    if attached.effect == 0:
        faults.append("the adapter changes nothing")
    return faults


def merges(trained: Any) -> list[str]:
    """The merged model in 16 bits, read back, behaves like base and adapter, or it says why that can't be proved."""
    import torch

    from jobs.exporters import models, proof, routing

    model = models.attach(models.load_base(trained.base), trained.adapter)
    reference = proof.refer(model, models.detached(model), PROMPTS, [])
    merged = models.merge(model)
    whole = routing.before(merged, reference, [])
    folder = Path(tempfile.mkdtemp())
    try:
        merged.to(models.half(trained.base)).save_pretrained(folder)
        rounding = whole and routing.after(whole, merged.to(torch.float32), reference)
        read = models.load(folder, torch.float32)
        verdict = proof.judge(reference, proof.observe(read, PROMPTS, [], reference.behaviour.answers), same_ids=True)
        verdict = routing.explained(verdict, rounding, lambda: read, reference)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if verdict.passed is not False:
        return []
    return [f"merged: {verdict.reason}"]
