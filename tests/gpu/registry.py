"""The parts of `make gpu`, in the order in which they run."""

from __future__ import annotations

from dataclasses import dataclass

WITHIN_S = 480.0  # for all parts, unless --within says otherwise
BETWEEN_S = 10.0  # of it: what starting the parts and writing their lines takes


@dataclass(frozen=True)
class Part:
    """`module`: of tests.gpu, whose `measure(scale)` returns what was measured. `seconds`: about what it takes on a card."""

    name: str
    module: str
    seconds: int
    promise: str
    least: int = 0  # seconds with which it can still measure something; what it then lacks it names itself

    @property
    def limit_s(self) -> int:
        """It is ended after that long, so that the others have their time."""
        return 2 * self.seconds

    @property
    def needed_s(self) -> int:
        return self.least or self.seconds


PARTS = (
    Part("machine", "machine", 15, "a trainer that stands by takes nothing of the card"),
    Part("models", "models", 25, ""),
    Part("memory", "memory", 100, "every peak within -5 and +10 % of the prediction", least=50),
    Part("8 GiB", "small_card", 30, "8 billion parameters train in 7.2 GiB, and 2,048 tokens in 7.6"),
    Part("speed", "speed", 70, "a job at 0.97 or more of its bare script's tokens/s", least=45),
    Part(
        "gains",
        "gains",
        30,
        "packed rows in one pass and a copy in 4 bits are no slower than without; the losses stay within 1 %",
        least=16,
    ),
    Part(
        "engine",
        "engine",
        75,
        "0.6 of the roofline, 0.85 of that with a LoRA, eight adapters 5 times one by one, a switch in 1 ms; equal tokens",
        least=45,
    ),
    Part("hand-over", "hand_over", 25, "at most 16 MiB of the card are left after giving way and after an error"),
    Part("exact", "exact", 30, "a resumed run is equal with full_determinism"),
    Part("float16", "float16", 20, "60 steps with overflows end well, and the engine answers"),
    Part("doctor", "doctor", 15, "out of memory and a hidden card are told with their remedies"),
    Part("proof", "proof", 35, "merged, adapter and gguf are proved"),
)
NAMES = tuple(part.name for part in PARTS)
