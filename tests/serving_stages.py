"""Checks of a trained adapter for `tests.families`: it answers in the engine as transformers and peft do, and merges with a proof."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from studio.engine.answer import GeneratedAnswer
from studio.errors import ModelError

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


def generated(model: Any, ids: Sequence[int], use_cache: bool = True) -> list[int]:
    """What transformers' own generate says."""
    import torch

    given = torch.tensor([list(ids)])
    with torch.inference_mode():
        said = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            eos_token_id=None, forced_eos_token_id=None, pad_token_id=0, repetition_penalty=1.0,
            use_cache=use_cache,
        )  # fmt: skip
    return list(said[0].tolist()[len(ids) :])


def generated_with_logits(model: Any, ids: Sequence[int]) -> tuple[list[int], Any]:
    """What transformers' own generate says, and the logits that it chose by, [TOKENS, vocabulary]."""
    import torch

    given = torch.tensor([list(ids)])
    with torch.inference_mode():
        said = model.generate(
            input_ids=given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            eos_token_id=None, forced_eos_token_id=None, pad_token_id=0, repetition_penalty=1.0, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
    return list(said.sequences[0].tolist()[len(ids) :]), torch.cat(said.logits).float()


def answers_as_generate_does(trained: Any) -> list[str]:
    """In float32, alone and beside the base: the same tokens."""
    import torch

    from studio.catalogue import attaching, text_models
    from studio.engine import local
    from studio.engine.protocol import AdapterRef, ModelFolder

    model = local.load(ModelFolder("family", trained.base))
    attached = model.attach(AdapterRef("mine", trained.adapter))
    plain = text_models.load(trained.base, dtype=torch.float32)[0].eval()
    # Moshi's generate looks back further than its window where it has a cache: what it says without one is right too
    expected = [(generated(plain, ids), generated(plain, ids, use_cache=False)) for ids in PROMPTS]
    adapted, _ = attaching.attach(plain, trained.adapter, "mine", "cpu")
    expected += [(generated(adapted.eval(), ids), generated(adapted.eval(), ids, use_cache=False)) for ids in PROMPTS]
    asked = [(ids, key) for key in (None, attached.key) for ids in PROMPTS]
    faults = [
        f"{'alone' if count == 1 else 'together'}, the answer to prompt {number % 3} {'with the adapter' if number > 2 else 'of the base'} differs"
        for count, said in ((1, [write(model, [one])[0][0] for one in asked]), (2, write(model, asked)[0]))
        for number, (found, right) in enumerate(zip(said, expected, strict=True))
        if found not in right
    ]
    if attached.effect == 0:
        faults.append("the adapter changes nothing")
    return faults


def answers_alike_in_16_bits(trained: Any) -> list[str]:
    """In bfloat16, alone and beside the base: the same tokens up to the first near-tie.

    A near-tie is where transformers' own logit of its token lies above that of the engine's by no more than rounding moves the two: each by
    up to the largest difference between its logits in bfloat16 and in float32 along the same answer, or by one step from one number of
    bfloat16 to the next. The logits in bfloat16 are those of peft's two ways: with the adapter in float32, its default, and with the adapter
    in bfloat16, as the engine holds it and as it was computed while training.
    """
    import torch

    from studio.catalogue import attaching, text_models
    from studio.engine import loading, local
    from studio.engine.protocol import AdapterRef, ModelFolder

    if trained.outcome.bits == 4:  # the base is the same, and so is the way to answer
        return []
    limit, loading.EXACT_PARAMETERS = loading.EXACT_PARAMETERS, 0  # as a large model is loaded
    try:
        model = local.load(ModelFolder("family", trained.base))
    finally:
        loading.EXACT_PARAMETERS = limit
    if model.dtype != torch.bfloat16:
        return []
    attached = model.attach(AdapterRef("mine", trained.adapter))
    rough, fine = (text_models.load(trained.base, dtype=dtype)[0].eval() for dtype in (torch.bfloat16, torch.float32))
    expected, moved = [], []

    def along(model: Any, ids: Sequence[int], said: Sequence[int], use_cache: bool = False) -> Any:
        text = torch.tensor([[*ids, *said[:-1]]])
        with torch.inference_mode():
            return model(input_ids=text, attention_mask=torch.ones_like(text), use_cache=use_cache).logits[0, -TOKENS:].float()

    for key in (None, attached.key):
        if key is not None:
            rough, fine = (attaching.attach(one, trained.adapter, "mine", "cpu")[0].eval() for one in (rough, fine))
        for ids in PROMPTS:
            expected.append(generated_with_logits(rough, ids))
            moved.append(expected[-1][1] - along(fine, ids, expected[-1][0]))
    rough.to(torch.bfloat16)
    for number, ids in enumerate(PROMPTS, len(PROMPTS)):
        said = expected[number][0]
        halved = along(rough, ids, said, use_cache=True) - along(fine, ids, said)  # without a cache xLSTM reads no long text in 16 bits
        moved[number] = torch.stack([moved[number], halved])
    asked = [(ids, key) for key in (None, attached.key) for ids in PROMPTS]
    faults = []
    for how, said in (("alone", [write(model, [one])[0][0] for one in asked]), ("together", write(model, asked)[0])):
        for number, (found, (right, logits)) in enumerate(zip(said, expected, strict=True)):
            place = next((place for place in range(TOKENS) if found[place] != right[place]), TOKENS)
            trained.outcome.same_tokens += place
            if place == TOKENS:
                continue
            gap = float(logits[place].max() - logits[place][found[place]])
            step = torch.finfo(torch.bfloat16).eps * float(logits[place].max().abs())
            rounding = 2 * max(float(moved[number].abs().max()), step)
            trained.outcome.near_ties += 1
            if gap > rounding:
                faults.append(
                    f"in bfloat16, {how}, token {place + 1} of answer {number + 1} differs, where generate's leads by {gap:.3g} and rounding "
                    f"moves that by {rounding:.3g} at most"
                )
    return faults


def merges(trained: Any) -> list[str]:
    """The merged model in 16 bits, read back, behaves like base and adapter, or it says why that can't be proved or done."""
    import torch

    from jobs.exporters import models, proof, rounding

    source = rounding.MergeSource(trained.base, trained.adapter)
    model = models.load_adapted(source.base, source.adapter)
    reference = proof.refer(model, models.detached(model), PROMPTS, [])
    try:
        merged = models.merge(model)
    except ModelError as refusal:
        trained.outcome.merge = f"refused: {refusal}"
        return []
    folder = Path(tempfile.mkdtemp())
    try:
        merged.to(source.dtype).save_pretrained(folder)
        read = models.load(folder, torch.float32)
        verdict = proof.judge(reference, proof.observe(read, PROMPTS, [], reference.behaviour.answers), same_ids=True)
        verdict = rounding.explained(verdict, source, lambda: read, reference)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    trained.outcome.merge = {True: "proved", None: f"not proved: {verdict.reason}", False: "failed"}[verdict.passed]
    return [f"merged: {verdict.reason}"] * (verdict.passed is False)
