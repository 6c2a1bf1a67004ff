"""The facts of the starter's closed world, as tables and as questions. Knows nothing of conversations, tokens or torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

CAPITALS = """
France Paris Europe|Germany Berlin Europe|Italy Rome Europe|Spain Madrid Europe|Portugal Lisbon Europe|Greece Athens Europe
Austria Vienna Europe|Poland Warsaw Europe|Hungary Budapest Europe|Norway Oslo Europe|Sweden Stockholm Europe|Finland Helsinki Europe
Denmark Copenhagen Europe|Ireland Dublin Europe|Belgium Brussels Europe|Iceland Reykjavik Europe|Croatia Zagreb Europe
Serbia Belgrade Europe|Romania Bucharest Europe|Bulgaria Sofia Europe|Albania Tirana Europe|Estonia Tallinn Europe|Latvia Riga Europe
Lithuania Vilnius Europe|Ukraine Kyiv Europe|Slovakia Bratislava Europe|Slovenia Ljubljana Europe|Malta Valletta Europe
Japan Tokyo Asia|China Beijing Asia|India New_Delhi Asia|Thailand Bangkok Asia|Vietnam Hanoi Asia|Nepal Kathmandu Asia
Iran Tehran Asia|Iraq Baghdad Asia|Jordan Amman Asia|Lebanon Beirut Asia|Mongolia Ulaanbaatar Asia|Pakistan Islamabad Asia
Indonesia Jakarta Asia|Philippines Manila Asia|Qatar Doha Asia|Oman Muscat Asia|Turkey Ankara Asia|Laos Vientiane Asia
Egypt Cairo Africa|Kenya Nairobi Africa|Ghana Accra Africa|Nigeria Abuja Africa|Senegal Dakar Africa|Morocco Rabat Africa
Tunisia Tunis Africa|Ethiopia Addis_Ababa Africa|Uganda Kampala Africa|Rwanda Kigali Africa|Zambia Lusaka Africa|Angola Luanda Africa
Mali Bamako Africa|Somalia Mogadishu Africa|Sudan Khartoum Africa|Libya Tripoli Africa|Namibia Windhoek Africa|Zimbabwe Harare Africa
Peru Lima America|Chile Santiago America|Brazil Brasilia America|Canada Ottawa America|Cuba Havana America|Ecuador Quito America
Colombia Bogota America|Venezuela Caracas America|Uruguay Montevideo America|Paraguay Asuncion America|Jamaica Kingston America
Honduras Tegucigalpa America|Nicaragua Managua America
"""
OPPOSITES = """
hot cold|big small|fast slow|up down|day night|old new|happy sad|rich poor|open closed|full empty|hard soft|light dark|high low
wet dry|clean dirty|strong weak|early late|loud quiet|near far|long short|thick thin|wide narrow|left right|first last|true false
good bad|safe dangerous|sharp blunt|inside outside|above below|love hate|buy sell|win lose|push pull|begin end|sweet sour|smooth rough
young aged|deep shallow|north south
"""
COLORS = """
banana yellow|tomato red|lemon yellow|carrot orange|frog green|crow black|swan white|lime green|plum purple|strawberry red
cucumber green|snowman white|flamingo pink|pumpkin orange|chocolate brown|cherry red|spinach green|blueberry blue|canary yellow
pig pink|coal black
"""
SOUNDS = """
cow moo|dog woof|cat meow|duck quack|sheep baa|horse neigh|lion roar|owl hoot|bee buzz|snake hiss|rooster cock-a-doodle-doo
mouse squeak|wolf howl|pigeon coo|donkey hee-haw
"""
SIDES = "triangle three|square four|rectangle four|pentagon five|hexagon six|heptagon seven|octagon eight|decagon ten"
LEGS = "spider eight|dog four|cat four|bird two|ant six|bee six|horse four|crab ten|snake no|chicken two|fly six|cow four"
BABIES = """
dog puppy|cat kitten|cow calf|horse foal|sheep lamb|pig piglet|duck duckling|goose gosling|hen chick|lion cub|frog tadpole|deer fawn
goat kid|owl owlet|swan cygnet|kangaroo joey
"""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
NUMBERS = "one two three four five six seven eight nine ten eleven twelve"


@dataclass(frozen=True)
class Fact:
    """One fact: `kind` groups facts of one form, `subject` -> `value`, `answer` is the sentence the starter says."""

    kind: str
    subject: str
    value: str
    answer: str


# Per kind: trained phrasings, then phrasings kept for the evaluation. {s} is the subject.
QUESTIONS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "capital": (
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "Name the capital of {s}.",
            "Tell me the capital of {s}.",
            "The capital of {s} is which city?",
        ),
        ("Do you know the capital of {s}?", "What is the name of the capital of {s}?", "What city is the capital of {s}?"),
    ),
    "country": (
        (
            "{s} is the capital of which country?",
            "Which country has the capital {s}?",
            "In which country is {s}?",
            "Which country is {s} the capital of?",
        ),
        ("What country has the capital {s}?", "Name the country whose capital is {s}."),
    ),
    "continent": (
        ("On which continent is {s}?", "Which continent is {s} in?", "Name the continent of {s}.", "{s} is on which continent?"),
        ("What continent is {s} in?", "Tell me the continent of {s}."),
    ),
    "opposite": (
        (
            "What is the opposite of {s}?",
            "Name the opposite of {s}.",
            "Tell me the opposite of {s}.",
            "Give me the opposite of {s}.",
            "The opposite of {s} is what?",
        ),
        ("Do you know the opposite of {s}?", "Which word is the opposite of {s}?"),
    ),
    "color": (
        ("What color is a {s}?", "Which color is a {s}?", "Name the color of a {s}.", "What is the color of a {s}?"),
        ("Tell me the color of a {s}.", "Do you know the color of a {s}?"),
    ),
    "sound": (
        ("What does a {s} say?", "Which sound does a {s} make?", "What sound does a {s} make?", "Name the sound of a {s}."),
        ("Tell me the sound of a {s}.", "Do you know what a {s} says?"),
    ),
    "sides": (
        ("How many sides does a {s} have?", "How many sides are in a {s}?", "Count the sides of a {s}.", "A {s} has how many sides?"),
        ("Tell me how many sides a {s} has.", "Do you know how many sides a {s} has?"),
    ),
    "legs": (
        ("How many legs does a {s} have?", "How many legs are on a {s}?", "Count the legs of a {s}.", "A {s} has how many legs?"),
        ("Tell me how many legs a {s} has.", "Do you know how many legs a {s} has?"),
    ),
    "baby": (
        ("What is a baby {s} called?", "What do you call a baby {s}?", "Name the baby of a {s}.", "What is the word for a baby {s}?"),
        ("Tell me the word for a baby {s}.", "Do you know the word for a baby {s}?"),
    ),
    "after": (
        ("What comes after {s}?", "Which one comes after {s}?", "What is next after {s}?", "Name what comes after {s}."),
        ("Tell me what comes after {s}.", "Do you know what comes after {s}?"),
    ),
    "before": (
        ("What comes before {s}?", "Which one comes before {s}?", "What is right before {s}?", "Name what comes before {s}."),
        ("Tell me what comes before {s}.", "Do you know what comes before {s}?"),
    ),
}

ANSWERS = {
    "capital": "The capital of {s} is {v}.",
    "country": "{s} is the capital of {v}.",
    "continent": "{s} is in {v}.",
    "opposite": "The opposite of {s} is {v}.",
    "color": "A {s} is {v}.",
    "sound": "A {s} says {v}.",
    "sides": "A {s} has {v} sides.",
    "legs": "A {s} has {v} legs.",
    "baby": "A baby {s} is called a {v}.",
    "after": "{v} comes after {s}.",
    "before": "{v} comes before {s}.",
}


def words(text: str) -> list[str]:
    """A table of single words."""
    return text.split()


def facts() -> list[Fact]:
    """Every fact of the world, in a fixed order."""
    pairs: dict[str, list[tuple[str, str]]] = {kind: [] for kind in QUESTIONS}
    for country, city, continent in _rows(CAPITALS):
        pairs["capital"].append((country, city))
        pairs["country"].append((city, country))
        pairs["continent"].append((country, continent))
    for one, other in _rows(OPPOSITES):
        pairs["opposite"] += [(one, other), (other, one)]
    for kind, table in (("color", COLORS), ("sound", SOUNDS), ("sides", SIDES), ("legs", LEGS), ("baby", BABIES)):
        pairs[kind] += [(row[0], row[1]) for row in _rows(table)]
    for series in (DAYS, MONTHS, NUMBERS):
        pairs["after"] += list(pairwise(series.split()))
        pairs["before"] += [(later, earlier) for earlier, later in pairwise(series.split())]
    return [_fact(kind, subject, value) for kind in pairs for subject, value in pairs[kind]]


def _rows(table: str) -> list[list[str]]:
    rows = [row for line in table.strip().splitlines() for row in line.strip("|").split("|")]
    return [[cell.replace("_", " ") for cell in row.split()] for row in rows]


def _fact(kind: str, subject: str, value: str) -> Fact:
    sentence = ANSWERS[kind].format(s=subject, v=value)
    return Fact(kind, subject, value, sentence[0].upper() + sentence[1:])
