"""Writes the rows of the demos that studio/catalogue/demos.py lists: `python -m static.starter.recipe.demos --out static/demo`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from static.starter.recipe.facts import QUESTIONS, Fact, facts, words
from static.starter.recipe.world import HELD_OUT_NAMES, ITEMS, NAMES, PLACES, question
from studio.catalogue.demos import DEMOS

SEED = 11
Row = dict[str, list[dict[str, str]]]

QUEUES = {
    "billing": "invoice refund payment receipt charge price discount tax",
    "shipping": "parcel delivery courier package tracking shipment truck address",
    "account": "password login username profile email signup avatar nickname",
    "technical": "crash error bug screen printer update keyboard cable",
}
MESSAGES = (
    "I need help with the {w}.",
    "There is a problem with my {w}.",
    "Can you check the {w} for me?",
    "My {w} is wrong.",
    "Where do I find the {w}?",
    "Hello, I have a question about the {w}.",
    "Please look at my {w}.",
    "I am not happy with the {w}.",
    "Something is odd about the {w}.",
    "Who can help me with my {w}?",
    "The {w} does not look right.",
    "I want to talk about the {w}.",
)

ORDERS = (
    "{n} from {p} wants a {i}.",
    "Please send a {i} to {n} in {p}.",
    "{n} lives in {p} and ordered a {i}.",
    "A {i} for {n} in {p}, please.",
    "Ship one {i} to {p} for {n}.",
    "{n} asked for a {i}. Send it to {p}.",
)
MORE_NAMES = words(
    """
    Aaron Agnes Albert Amelia Arthur Barbara Betty Brian Calvin Cecil Cora Dennis Doris Edith Edwin Esther Ethan Fiona Fred Gerald
    Gloria Harold Harvey Hector Irene Isabel Jasper Jerome Joan Judith Keith Kevin Laura Leon Louis Lucy Mabel Mark Megan Molly Nathan
    Norman Olive Owen Pamela Philip Rachel Robert Roger Ruth Sandra Sheila Stanley Susan Teresa Trevor Vincent Violet Wayne Wendy
    """
)
MORE_PLACES = words(
    """
    Aberdeen Antwerp Basel Bilbao Bremen Brighton Calgary Cardiff Cologne Dortmund Florence Genoa Ghent Glasgow Granada Graz Hanover
    Houston Leipzig Linz Liverpool Malmo Manchester Marseille Memphis Montreal Munich Naples Nantes Oxford Palermo Phoenix Rotterdam
    Salzburg Seattle Sheffield Stuttgart Tampa Toulouse Venice Verona Zurich
    """
)
HELD_OUT_PLACES = words(
    """
    Adelaide Boulder Cordoba Dundee Eindhoven Fresno Gdansk Halifax Innsbruck Jaipur Kobe Lucerne Monterey Nagoya Odense Perth Quebec
    Ravenna Salem Trieste
    """
)


def router(source: random.Random) -> tuple[list[Row], list[Row]]:
    """Every word and every form of message is trained, but the pairs of the held-out rows are not."""
    train, held_out = [], []
    for queue, listed in QUEUES.items():
        for word in listed.split():
            rows = [_row(form.format(w=word), queue) for form in source.sample(MESSAGES, len(MESSAGES))]
            held_out += rows[:2]
            train += rows[2:11]
    return train, held_out


def voice(source: random.Random) -> tuple[list[Row], list[Row]]:
    """No fact of the held-out rows is trained in any phrasing."""
    known = [fact for fact in facts() if fact.kind in ("capital", "opposite", "color", "sound", "continent", "baby")]
    source.shuffle(known)
    rows = [_row(question(fact, source.choice(QUESTIONS[fact.kind][0])), pirate(fact)) for fact in known]
    return rows[64:224], rows[:64]


def pirate(fact: Fact) -> str:
    """`The capital of Peru is Lima.` -> `Arr, the capital of Peru be Lima, matey!`"""
    sentence = fact.answer[0].lower() + fact.answer[1:].rstrip(".") if fact.answer.startswith(("The ", "A ")) else fact.answer.rstrip(".")
    return f"Arr, {sentence.replace(' is ', ' be ', 1)}, matey!"


def extract(source: random.Random) -> tuple[list[Row], list[Row]]:
    """Held-out rows have names and places that no training row has."""
    train = [_order(source, NAMES + MORE_NAMES, PLACES + MORE_PLACES) for _ in range(300)]
    return train, [_order(source, HELD_OUT_NAMES, HELD_OUT_PLACES) for _ in range(64)]


def _order(source: random.Random, names: list[str], places: list[str]) -> Row:
    name, place, item = source.choice(names), source.choice(places), source.choice(ITEMS)
    asked = source.choice(ORDERS).format(n=name, p=place, i=item)
    return _row(asked, json.dumps({"name": name, "item": item, "place": place}))


def _row(asked: str, answer: str) -> Row:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


MAKERS: dict[str, Callable[[random.Random], tuple[list[Row], list[Row]]]] = {"router": router, "voice": voice, "extract": extract}


def make(name: str) -> tuple[list[Row], list[Row]]:
    """The training rows and the held-out rows of one demo, shuffled, without doubles."""
    source = random.Random(f"{SEED} {name}")
    train, held_out = MAKERS[name](source)
    return _shuffled(source, train), _shuffled(source, held_out)


def _shuffled(source: random.Random, rows: list[Row]) -> list[Row]:
    distinct = list({json.dumps(row): row for row in rows}.values())
    source.shuffle(distinct)
    return distinct


def write(name: str, folder: Path) -> None:
    for part, rows in zip(("train", "eval"), make(name), strict=True):
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (folder / f"{name}.{part}.jsonl").write_text("".join(lines), "utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m static.starter.recipe.demos", description="Write the demo datasets.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the datasets, such as static/demo")
    folder = parser.parse_args().out
    folder.mkdir(parents=True, exist_ok=True)
    for name in DEMOS:
        write(name, folder)


if __name__ == "__main__":
    main()
