"""Part `float16`: a card without bfloat16, as far as another can stand for it: a training whose scaler overflows, and the engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.gpu import child, models, training
from tests.gpu.outcome import Measured
from tests.gpu.scale import Scale

FIRST_SCALE = 2.0**26  # so large that the first steps overflow
STEPS, GROWS_AFTER = 60, 20
TOKENS = 8


def measure(scale: Scale) -> Measured:
    options = {
        "dtype": "float16", "max_steps": scale.of(STEPS, 16), "save_steps": STEPS,
        "per_device_train_batch_size": scale.of(4, 1), "max_length": scale.of(512, 64),
    }  # fmt: skip
    made = training.run(scale, "float16", "1B", training.job(scale, "lora-sft", options))
    scaler = [FIRST_SCALE, 2.0, 0.5, scale.of(GROWS_AFTER, 4)]
    trained = child.call(scale.folder, "tests.gpu.training:train", scale.limit_s, folder=str(made.path), scaler=scaler)
    answered = child.call(scale.folder, "tests.gpu.float16:answer", scale.limit_s, scale=scale.as_json())
    reason = training.why(trained)
    skipped = trained["result"].get("metrics", {}).get("skipped_steps", 0)
    missed = []
    if reason:
        missed.append(f"the training failed: {reason}")
    elif not skipped:
        missed.append("no step overflowed, so nothing was tried")
    if answered["dtype"] != "torch.float16" or answered["error"] or answered["tokens"] != TOKENS:
        missed.append(f"the engine answered {answered['tokens']} tokens in {answered['dtype']}: {answered['error'] or 'no error'}")
    how = "failed" if reason else f"ended well, loss {trained['losses'][-1]:.2f}"
    said = f"{len(trained['losses'])} steps, {skipped} skipped by the scaler: {how}; the engine answers in {answered['dtype']}"
    figures = {"skipped_steps": skipped, "losses": trained["losses"], "notices": trained["notices"], "engine": answered}
    return Measured(figures, said, missed)


def answer(scale: Mapping[str, Any]) -> dict[str, Any]:
    """In a child: an answer under a LoRA in float16, as the engine computes where there is no bfloat16."""
    import torch

    from studio.engine import intake, loading, local
    from studio.engine.decoding import Batch
    from studio.engine.protocol import AdapterRef, GenerationRequest, ModelFolder
    from studio.types import GenerationParams

    here = Scale(**scale)
    vars(loading)["choose_dtype"] = lambda *_: torch.float16
    folder = ModelFolder("1B", models.base(here, "1B"))
    model = local.load(folder)
    lora = models.adapters(here, "1B")[0]
    key = model.attach(AdapterRef(lora.name, lora)).key
    asked = GenerationRequest("m", folder, GenerationParams(temperature=0.0, max_new_tokens=TOKENS), prompts=("Once upon a time",))
    (made,) = intake.prepare(asked, lambda _: None)
    made.stop_ids = frozenset()
    batch = Batch(model)
    batch.join([made], [key])
    while batch.answers:
        batch.step()
    return {"dtype": str(model.dtype), "tokens": len(made.ids), "error": str(made.error or "")}
