"""`python -m tests.gpu --out FOLDER --within SECONDS`: the parts one after the other; a line of a table and a line of JSON as each ends.

The lines are in FOLDER/table.txt and FOLDER/figures.jsonl too. Exit code 1 where a promise was not kept, 2 where there is no card.
Needs no pytest.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.gpu import needs, registry

NO_CARD = 2


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description="What only a card can settle.")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="the folder of what is written, models and runs too")
    parser.add_argument("--within", type=float, default=registry.WITHIN_S, help="seconds for all parts; what there is no time for is named")
    parser.add_argument("--reduced", action="store_true", help="small, on the processor: the same code, none of the figures")
    parser.add_argument("--part", action="append", choices=registry.NAMES, help="only this one; may be given several times")
    parser.add_argument("--keep", action="store_true", help="leave models and runs where they are")
    chosen = parser.parse_args(arguments)
    until = time.time() + chosen.within
    if lacking := needs.packages(with_card=not chosen.reduced) or ("" if chosen.reduced else needs.card()):
        print(lacking, file=sys.stderr)
        return NO_CARD
    chosen.out.mkdir(parents=True, exist_ok=True)
    if not chosen.reduced and (lacking := needs.disk(chosen.out)):
        print(lacking, file=sys.stderr)
        return NO_CARD
    work = Path(tempfile.mkdtemp(prefix="work-", dir=chosen.out)).absolute()
    try:
        return _run(chosen, work, until)
    finally:
        if chosen.keep:
            print(f"Models and runs are in {work}.")
        else:
            shutil.rmtree(work, ignore_errors=True)


def _run(chosen: argparse.Namespace, work: Path, until: float) -> int:
    from tests.gpu import child, machine
    from tests.gpu.running import Runner, summary

    if chosen.reduced:
        child.preload()
    parts = [part for part in registry.PARTS if not chosen.part or part.name in chosen.part]
    outcomes = []
    for outcome in Runner(work, chosen.reduced, until, machine.describe()).run(parts):
        outcomes.append(outcome)
        for file, line in (("table.txt", outcome.line()), ("figures.jsonl", outcome.json_line())):
            print(line, flush=True)
            with (chosen.out / file).open("a", encoding="utf-8") as kept:
                kept.write(line + "\n")
    print(summary(outcomes))
    return int(any(outcome.is_bad for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
