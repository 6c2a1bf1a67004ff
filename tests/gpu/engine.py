"""Part `engine`: how fast the engine's model answers, beside transformers' own `generate` and beside what the card's memory allows.

Each base is measured in a process of its own: 8 billion parameters in 16 and in 4 bits for the figures, 1 billion in float32 for equal
tokens. The roofline is the time in which the weights can be read once, at the speed with which this card copies.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.gpu import child, models
from tests.gpu.outcome import Measured
from tests.gpu.scale import Scale

BASES = (
    ("8B in 16 bits", "8B", "", 35),
    ("1B in float32", "1B", "", 20),
    ("8B in NF4", "8B", "nf4", 40),
)  # name, size, how, seconds
EXACT = "1B in float32"
FIGURED = "8B in 16 bits"
LEAST_OF_ROOFLINE, LEAST_WITH_LORA, LEAST_TOGETHER, LEAST_SAMPLED = 0.6, 0.85, 5.0, 0.95
MOST_SWITCH_MS, MOST_OPERATIONS = 1.0, 1.6
WORD = "What is the capital of France? "
WARM, ROUNDS = 4, 5
SAMPLED = {"temperature 0.7": {"temperature": 0.7}, "top_p 0.9": {"temperature": 0.7, "top_p": 0.9}}


def measure(scale: Scale) -> Measured:
    figures: dict[str, Any] = {}
    missed: list[str] = []
    left_out: list[str] = []
    for name, size, quantization, seconds in scale.of(BASES, BASES[1:]):  # reduced, the first would be as the second
        if not scale.has_time(seconds):
            left_out.append(f"{name}: {scale.left_s:.0f} s are left")
            continue
        if not quantization and (reason := models.lacks_room(scale, size)):
            left_out.append(f"{name}: {reason}")
            continue
        asked: dict[str, Any] = {"size": size, "quantization": quantization, "exact": name == EXACT, "scale": scale.as_json()}
        try:
            figures[name] = child.call(scale.folder, "tests.gpu.engine:look_at", scale.limit_s, **asked)
        except child.ChildFailed as exc:
            missed.append(f"{name}: {exc}")
    for name, found in figures.items():
        missed += broken(name, found, scale.is_reduced)
    if scale.is_reduced:
        left_out.append("how fast answers are, which is asked of a card")
    return Measured(figures, "; ".join(f"{name}: {_said(found)}" for name, found in figures.items()), missed, left_out)


def broken(name: str, found: Mapping[str, Any], is_reduced: bool) -> list[str]:
    """The promises that these figures do not keep. Times are asked of a card only."""
    limits = [("operations per step with eight adapters, of the base's", found["operations_ratio"], "<=", MOST_OPERATIONS)]
    if name == EXACT:
        limits.append(("of eight answers equal in one batch and alone", found["same"], ">=", models.ADAPTERS))
        limits.append(("of eight adapters say something of their own", found["distinct"], ">=", models.ADAPTERS))
    if name == FIGURED and not is_reduced:
        speed = found["tokens_per_s"]
        limits += [
            ("of the roofline", speed["base"] / found["roofline_per_s"], ">=", LEAST_OF_ROOFLINE),
            ("of the base's tokens/s with a LoRA", speed["LoRA"] / speed["base"], ">=", LEAST_WITH_LORA),
            ("of the greedy tokens/s with temperature 0.7", speed["temperature 0.7"] / speed["base"], ">=", LEAST_SAMPLED),
            ("times one by one with eight adapters in a batch", found["together_ratio"], ">=", LEAST_TOGETHER),
            ("ms for a switch", found["switch_ms"], "<=", MOST_SWITCH_MS),
        ]
    kept: dict[str, Callable[[float, float], bool]] = {"<=": lambda a, b: a <= b, ">=": lambda a, b: a >= b}
    return [f"{name}: {value:.2f} {what}, promised {sign} {limit:g}" for what, value, sign, limit in limits if not kept[sign](value, limit)]


def _said(found: Mapping[str, Any]) -> str:
    speed = found["tokens_per_s"]
    rates = ", ".join(f"{what} {rate:.0f}" for what, rate in speed.items())
    return (
        f"loaded in {found['load_s']:.1f} s, first token {found['first_ms']:.0f} ms beside {found['bare_first_ms']:.0f}, tokens/s {rates}, "
        f"generate {found['bare_per_s']:.0f}, roofline {found['roofline_per_s']:.0f}; switch {found['switch_ms']:.2f} ms; eight adapters "
        f"{found['together_ratio']:.1f} times one by one, {found['same']} of 8 equal; {found['operations']['base']} operations per step, "
        f"{found['operations']['eight adapters']} with eight adapters"
    )


# from here on: in the child of one base


def look_at(size: str, quantization: str, exact: bool, scale: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is measured of one base."""
    import torch

    from studio.engine import loading, local
    from studio.engine.protocol import AdapterRef, ModelFolder

    here = Scale(**scale)
    folder = models.base(here, size)
    loras = models.adapters(here, size)
    if exact:
        vars(loading)["choose_dtype"] = lambda *_: torch.float32
    loading.limit_threads()
    begun = time.perf_counter()
    model = local.load(ModelFolder(size, folder, quantization))
    load_s = time.perf_counter() - begun
    bench = Bench(here, model)
    bare = bench.bare()
    refs = [AdapterRef(lora.name, lora) for lora in loras]
    keys = [model.attach(ref).key for ref in refs]
    rates = {"base": bench.rate([None]), "LoRA": bench.rate([keys[0]])}
    rates |= {name: bench.rate([None], params) for name, params in SAMPLED.items()}
    operations = {"base": bench.operations([None] * len(keys)), "eight adapters": bench.operations(keys)}
    return {
        "load_s": load_s,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "first_ms": bench.first_ms(),
        **bare,
        "tokens_per_s": rates,
        "roofline_per_s": bench.roofline(),
        "switch_ms": bench.switch_ms(refs[:2]),
        **bench.together(keys),
        "operations": operations,
        "operations_ratio": operations["eight adapters"] / operations["base"],
    }


class Bench:
    """Measures one loaded model."""

    def __init__(self, scale: Scale, model: Any) -> None:
        self._scale = scale
        self._model = model
        self._steps = scale.of(32, 4)
        self._prompt = WORD * scale.of(64, 4)  # 512 tokens
        self._number = 0

    def bare(self) -> dict[str, float]:
        """transformers' `generate` on the same weights, before any adapter is near them."""
        import torch

        ids = torch.tensor([self._asked(1)[0].prompt_ids], device=self._model.device)
        more: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        generate = self._model._base.generate

        def once(tokens: int) -> float:
            begun = self._clock()
            with torch.inference_mode():
                generate(ids, max_new_tokens=tokens, min_new_tokens=tokens, **more)
            return self._clock() - begun

        once(2)
        first = statistics.median(once(1) for _ in range(self._scale.of(ROUNDS, 1)))
        whole = once(1 + self._steps)
        return {"bare_first_ms": 1000 * first, "bare_per_s": self._steps / max(whole - first, 1e-9)}

    def first_ms(self) -> float:
        """From a prompt that was never read to its first token."""
        times = []
        for _ in range(1 + self._scale.of(ROUNDS, 1)):
            answers = self._asked(1)
            begun = self._clock()
            self._joined(answers, [None])
            times.append(1000 * (self._clock() - begun))
        return statistics.median(times[1:])

    def rate(self, keys: Sequence[str | None], params: Mapping[str, Any] | None = None) -> float:
        """Tokens per second of answers under these adapters together, after their first ones."""
        batch = self._joined(self._asked(len(keys), params), keys)
        seconds = self._seconds(batch)
        return len(keys) * self._steps / seconds

    def together(self, keys: Sequence[str]) -> dict[str, Any]:
        """Answers under all adapters in one batch beside one after the other: how much faster, and how many of them say the same."""
        mixed = self._asked(len(keys))
        alone = [self._asked(1, same_as=mixed)[0] for _ in keys]
        one_by_one = sum(self._seconds(self._joined([answer], [key])) for answer, key in zip(alone, keys, strict=True))
        seconds = self._seconds(self._joined(mixed, keys))
        same = sum(one.ids == other.ids for one, other in zip(mixed, alone, strict=True))
        return {"together_ratio": one_by_one / seconds, "same": same, "distinct": len({tuple(one.ids) for one in mixed})}

    def switch_ms(self, refs: Sequence[Any]) -> float:
        """Of a change between two adapters that are in memory."""
        keys = [self._model.attach(ref).key for ref in refs]
        times = []
        for number in range(self._scale.of(100, 4)):
            begun = self._clock()
            self._model.attach(refs[number % 2])
            self._model._model_for([keys[number % 2]])
            times.append(1000 * (self._clock() - begun))
        return statistics.median(times)

    def operations(self, keys: Sequence[str | None]) -> int:
        """What a decode step dispatches to the device; views, which compute nothing, are not counted."""
        from torch.utils._python_dispatch import TorchDispatchMode

        class Count(TorchDispatchMode):
            found = 0

            def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                self.found += not func.is_view
                return func(*args, **(kwargs or {}))

        batch = self._joined(self._asked(len(keys)), keys)
        batch.step()
        with Count() as count:
            batch.step()
        return count.found

    def roofline(self) -> float:
        """Tokens per second if reading the weights once were all there is to a token."""
        import torch

        size = 16 * 1024**2
        if self._model.device.type == "cuda":
            size = min(4 * 1024**3, torch.cuda.mem_get_info()[0] // 4)
        source = torch.empty(size, dtype=torch.uint8, device=self._model.device)
        target = torch.empty_like(source)
        times = []
        for _ in range(ROUNDS):
            begun = self._clock()
            target.copy_(source)
            times.append(self._clock() - begun)
        speed = 2 * size / statistics.median(times)  # read and written
        base = self._model._base
        read = {id(p): p.numel() * p.element_size() for p in base.parameters()}
        ends = base.get_input_embeddings().weight, base.get_output_embeddings().weight
        if ends[0] is not ends[1]:
            read.pop(id(ends[0]))  # of which a token reads one row
        return speed / sum(read.values())

    def _asked(self, rows: int, params: Mapping[str, Any] | None = None, same_as: Sequence[Any] = ()) -> list[Any]:
        """Answers to be made, of a prompt that begins as none before."""
        from studio.engine import intake
        from studio.engine.protocol import GenerationRequest
        from studio.types import GenerationParams

        if not same_as:
            self._number += 1
        chosen = GenerationParams(**{"temperature": 0.0, **(params or {}), "max_new_tokens": 1000})
        prompt = f"{self._number} {self._prompt}"
        request = GenerationRequest("m", self._model.folder, chosen, prompts=(prompt,), n=rows, lane="batch")
        answers = intake.prepare(request, lambda _: None)
        for answer in answers:
            answer.stop_ids = frozenset()
        return answers

    def _joined(self, answers: Sequence[Any], keys: Sequence[str | None]) -> Any:
        from studio.engine.decoding import Batch

        self._model.prefixes._kept.clear()
        batch = Batch(self._model)
        batch.join(answers, keys)
        return batch

    def _seconds(self, batch: Any) -> float:
        for _ in range(WARM):
            batch.step()
        begun = self._clock()
        for _ in range(self._steps):
            batch.step()
        return self._clock() - begun

    def _clock(self) -> float:
        """Now, when the device has done all that it was asked."""
        import torch

        if self._model.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
