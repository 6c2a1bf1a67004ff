"""The Data tab by mouse: any columns in, every planted fault found and mended, what is learned, parity, and new versions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.conftest import SCREENSHOTS, write

ONLY_THE_PAGE = True

TOPICS = ("bread", "rivers", "violins", "bicycles", "glaciers", "owls", "bridges", "clocks", "kites", "lanterns", "barrels", "orchards")
SOUND = [
    (
        f"How were {topic} counted in {1700 + 13 * n}?",
        f"In {1700 + 13 * n} the {topic} were counted by {TOPICS[-n]} makers, who wrote {n + 3} lines about {topic} in a book.",
    )
    for n, topic in enumerate(TOPICS)
]
FAULTY = {
    "Empty answers": ("How should I store tools?", ""),
    "Refusals and boilerplate": ("Tell me about locks.", "I'm sorry, but as an AI language model I can't help with that request."),
    "Personal data and keys": ("Whom do I ask about the archive?", "Write to anna.berg@example.org and ask for the keeper of the archive."),
    "Broken characters": (
        "What about caf\ufffds?",
        "The caf\ufffds near the harbour were opened by sailors who had come home from the sea.",
    ),
    "Control characters": ("What is in the margin?", "The margin holds a note\u0007 about the price of grain and the name of a miller."),
    "Control tokens written as text": ("How does a turn end?", "A turn of this model ends with <|im_end|> and a new line follows it."),
    "Placeholders that nobody filled in": ("Who wrote to me?", "It was {{name}}, who keeps the archive near the harbour of [CITY]."),
    "Text that repeats itself": ("How do echoes go?", ("and on and on " * 30).strip()),
    "Answers that are cut off": ("Describe the wall.", " ".join(f"Stone {n} came from quarry {n * 7}." for n in range(130))),
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound rows, one row of each fault, and one of the sound rows twice."""
    rows = [*SOUND[:6], *FAULTY.values(), *SOUND[6:], SOUND[2]]
    path = tmp_path_factory.mktemp("data") / "planted.jsonl"
    talks = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in rows]
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks), encoding="utf-8")
    return path


def choose(page: Page, field: str, name: str) -> None:
    """Take `name` in the dropdown `field`, as a hand would."""
    expect(page.get_by_role("option")).to_have_count(0)  # the list that was open before is gone
    page.locator(f"{field} input").first.click()
    page.get_by_role("option", name=name, exact=True).click()


def upload(page: Page, path: Path) -> None:
    page.set_input_files("#data-file input[type=file]", path)


def menu(page: Page, column: str) -> Locator:
    """What the column is, in the table of a file that is looked at."""
    return page.get_by_label(f"What the column {column} is", exact=True)


def opened(page: Page, name: str | re.Pattern[str]) -> None:
    """Wait until the dataset `name` is the chosen one."""
    expect(page.locator("#data-head h2")).to_have_text(name)
    expect(page.locator("#data-list [aria-current=true] .name")).to_have_text(name)


def test_columns_of_any_name_are_mapped_by_hand_and_remembered(visit: Callable[..., Page], tmp_path: Path) -> None:
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text("wort,sinn\nHaus,house\nBaum,tree\n")
    second.write_text("wort,sinn\nBerg,mountain\n")
    page = visit("data")
    upload(page, first)
    expect(page.locator("#data-notice")).to_contain_text("wort, sinn")
    menu(page, "wort").select_option("prompt")
    menu(page, "sinn").select_option("completion")
    expect(page.locator("#data-rows .examples li")).to_have_count(2)
    expect(page.locator("#data-rows .examples li").nth(1)).to_contain_text("tree")
    menu(page, "sinn").select_option("prompt")  # the two change places
    expect(page.locator("#data-rows .turn.user").first).to_contain_text("house")
    menu(page, "wort").select_option("prompt")
    expect(page.locator("#data-rows .turn.user").first).to_contain_text("Haus")
    page.get_by_role("button", name="Add dataset").click()
    opened(page, "first")

    upload(page, second)

    expect(page.locator("#data-preview")).to_contain_text("Mapped as the last time for these columns (first).")
    expect(page.locator("#data-preview .turn.assistant")).to_contain_text("mountain")
    page.get_by_role("button", name="Discard").click()
    opened(page, "first")


GERMAN = """Frage;Antwort;Notiz
Wann öffnet der Laden?;Um neun Uhr.;von Anna
Kann ich Ware zurückgeben?;Ja, innerhalb von 30 Tagen mit dem Kassenbon.;
Liefern Sie nach Österreich?;Ja, in drei bis fünf Werktagen.;bitte prüfen
"""


def test_foreign_headers_are_mapped_on_the_table_and_what_is_left_out_is_named(
    visit: Callable[..., Page], api: httpx.Client, axe: str, tmp_path: Path
) -> None:
    path = tmp_path / "laden.csv"
    path.write_text(GERMAN, encoding="utf-8")
    page = visit("data")
    upload(page, path)
    expect(page.locator("#data-table tbody tr")).to_have_count(3)
    expect(menu(page, "Frage")).to_have_value("prompt")
    expect(menu(page, "Antwort")).to_have_value("completion")
    expect(menu(page, "Notiz")).to_have_value("")
    expect(page.locator("#data-table th.used")).to_contain_text(["German for the question", "German for the answer"])
    expect(page.locator("#data-table .left-out")).to_contain_text("Notiz")
    expect(page.locator("#data-table .left-out")).to_contain_text("a value in 2 rows")
    expect(page.locator("#data-preview .turn.user").first).to_contain_text("Wann öffnet der Laden?")
    shots(page, "mapping", axe)

    menu(page, "Notiz").focus()
    page.keyboard.press("s")  # to "system", as in any menu
    expect(menu(page, "Notiz")).to_have_value("system")
    expect(page.locator("#data-preview .turn.system").first).to_contain_text("von Anna")
    expect(page.locator("#data-table .left-out")).to_have_count(0)
    expect(menu(page, "Notiz")).to_be_focused()
    menu(page, "Notiz").select_option("")
    expect(page.locator("#data-preview .turn.system")).to_have_count(0)
    menu(page, "Antwort").select_option("")
    expect(page.locator("#data-table .needed")).to_contain_text("the column with the completion")
    page.get_by_role("button", name="Add dataset").click()
    expect(page.locator("#data-notice")).to_contain_text("Still needed")
    menu(page, "Antwort").select_option("completion")
    expect(page.locator("#data-preview .turn.assistant").first).to_contain_text("Um neun Uhr.")
    page.get_by_role("button", name="Add dataset").click()
    opened(page, "laden")

    kept = api.get("/datasets/laden").json()
    assert (kept["rows"], kept["mapping"]) == (3, {"prompt": "Frage", "completion": "Antwort"})


def test_a_column_that_says_how_rows_are_meant_is_decided_on_before_they_are_kept(
    visit: Callable[..., Page], api: httpx.Client, axe: str, tmp_path: Path
) -> None:
    path = tmp_path / "marked.csv"
    path.write_text("prompt,completion,weight,source\nWhere is Kyoto?,In Peru.,0,web\nWhere is Lima?,In Peru.,1,web\n")
    page = visit("data")
    upload(page, path)
    expect(page.locator("#data-table .telling")).to_contain_text("“weight” says what is to be learned of a row, and is not used")
    expect(menu(page, "weight")).to_have_value("?")
    page.get_by_role("button", name="Add dataset").click()
    expect(page.locator("#data-notice")).to_contain_text("the column “weight” says what is to be learned")
    expect(page.locator("#data-notice")).to_be_in_viewport()
    shots(page, "mapping-telling", axe)
    menu(page, "weight").select_option("")
    expect(page.locator("#data-table .telling")).to_contain_text("It is left out, as chosen.")
    page.get_by_role("button", name="Add dataset").click()
    opened(page, "marked")

    assert api.get("/datasets/marked").json()["unused"]["columns"] == {"weight": 2, "source": 2}


def shots(page: Page, name: str, axe: str) -> None:
    """The page wide and narrow, light and dark, for people to look at; it breaks no rule and never scrolls sideways."""
    page.evaluate(axe)
    for theme in ("light", "dark"):
        page.evaluate(f"document.body.classList.toggle('dark', {json.dumps(theme == 'dark')})")
        for width in (1280, 390):
            page.set_viewport_size({"width": width, "height": 800})
            page.screenshot(path=SCREENSHOTS / f"{name}-{theme}-{width}.png", full_page=True)
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0, width
        found = page.evaluate("axe.run('#data-table', {resultTypes: ['violations']})")["violations"]
        assert [(rule["id"], [node["html"][:200] for node in rule["nodes"]]) for rule in found] == []
    page.evaluate("document.body.classList.remove('dark')")
    page.set_viewport_size({"width": 1280, "height": 800})


def test_pasted_rows_and_a_hub_that_does_not_answer(visit: Callable[..., Page]) -> None:
    page = visit("data")
    page.get_by_role("button", name="Or paste them").click()
    write(page.locator("#data-text textarea"), "prompt,completion\nping,pong\n")
    page.get_by_role("button", name="Read this text").click()
    expect(page.locator("#data-preview .turn.assistant")).to_contain_text("pong")
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("button", name="Or take a dataset of the Hugging Face Hub").click()
    write(page.locator("#data-hub-name input, #data-hub-name textarea").first, "nobody/nothing")
    page.get_by_role("button", name="Fetch and look at it").click()

    expect(page.locator("#data-notice")).to_contain_text("hub:nobody/nothing")


def test_every_planted_fault_is_found_shown_and_mended(visit: Callable[..., Page], planted: Path) -> None:
    page = visit("data")
    upload(page, planted)
    page.get_by_role("button", name="Add dataset").click()
    opened(page, "planted")
    found = page.locator("#data-findings .findings > li")
    expect(found).to_have_count(len(FAULTY) + 1)
    for title in (*FAULTY, "The same row again"):
        expect(found.filter(has_text=title)).to_contain_text("1 row")

    masked = found.filter(has_text="Personal data and keys")
    masked.locator("summary").click()
    expect(masked.locator(".body")).to_contain_text("A model can repeat them")
    masked.get_by_role("button", name="Show row 9", exact=True).click()
    expect(page.locator("#data-kept .marked")).to_contain_text("anna.berg@example.org")
    expect(page.locator("#data-kept .marked")).to_be_in_viewport()
    masked.get_by_role("button", name=re.compile("Mask in 1 row")).click()
    opened(page, "planted-v2")
    expect(page.locator("#data-findings .findings > li")).to_have_count(len(FAULTY))
    expect(page.locator("#data-head .versions li")).to_have_count(2)
    page.get_by_role("button", name=re.compile(f"Fix all {len(FAULTY)}")).click()
    opened(page, "planted-v3")

    expect(page.locator("#data-findings")).to_contain_text("Nothing to mend")
    expect(page.locator("#data-head .facts").first).to_contain_text("15 rows")
    page.locator("#data-head .versions button").first.click()
    opened(page, "planted")
    expect(page.locator("#data-head .facts").first).to_contain_text("22 rows")
    expect(page.locator("#data-findings .findings > li")).to_have_count(len(FAULTY) + 1)
    page.reload()
    opened(page, "planted")


def test_placeholders_are_filled_and_pairs_and_marks_are_mended_by_one_click(visit: Callable[..., Page], api: httpx.Client) -> None:
    sound = [{"prompt": question, "completion": answer} for question, answer in SOUND]
    open_places = {"prompt": "Who are you?", "completion": "I am {{name}}, and [YOUR NAME] keeps me near the harbour of ${city}."}
    pairs = [{"prompt": question, "chosen": answer, "rejected": "Nothing of that is known to me."} for question, answer in SOUND]
    pairs[4]["rejected"] = f"{pairs[4]['chosen']} "
    marked = [{**row, "label": True} for row in sound]
    for name, rows in {"open": [*sound, open_places], "equal": pairs, "onlygood": marked}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        api.post("/datasets", files={"file": (f"{name}.jsonl", text)}, data={"name": name}).raise_for_status()
    page = visit("data")
    finding = page.locator("#data-findings .findings > li")

    page.locator("#data-list button", has_text="open").first.click()
    opened(page, "open")
    expect(finding).to_have_count(1)
    finding.locator("summary").click()
    expect(finding.locator(".blanks input")).to_have_count(3)
    for written, value in {"{{name}}": "Ada", "[YOUR NAME]": "Ben", "${city}": "Oslo"}.items():
        write(finding.get_by_label(written, exact=True), value)
    page.screenshot(path=SCREENSHOTS / "placeholders.png", full_page=True)
    finding.get_by_role("button", name="Fill in 1 row").click()
    opened(page, "open-v2")
    expect(page.locator("#data-findings")).to_contain_text("Nothing to mend")
    assert "I am Ada, and Ben keeps me near the harbour of Oslo." in api.get("/datasets/open-v2/export").text

    for name, title, button, facts in (
        ("equal", "Two answers that are the same", "Drop 1 row", "11 rows"),
        ("onlygood", "Only one kind of label", "Imitate the good", "12 rows"),
    ):
        page.locator("#data-list button", has_text=name).first.click()
        opened(page, name)
        expect(finding).to_have_count(1)
        expect(finding).to_contain_text(title)
        finding.get_by_role("button", name=re.compile(button)).click()
        opened(page, f"{name}-v2")
        expect(page.locator("#data-findings")).to_contain_text("Nothing to mend")
        expect(page.locator("#data-head .facts").first).to_contain_text(facts)


def test_what_is_learned_and_whether_chat_agrees(visit: Callable[..., Page], api: httpx.Client, planted: Path) -> None:
    seen = api.post("/datasets", files={"file": ("planted.jsonl", planted.read_bytes())}, data={"name": "seen"}).raise_for_status().json()
    page = visit("data", dataset=seen["id"])
    opened(page, "seen")
    page.get_by_role("tab", name="What is learned").click()
    expect(page.locator("#data-learned .learned").nth(1)).to_contain_text("In 1700 the bread were counted")
    expect(page.locator("#data-learned .histogram rect").first).to_be_visible()
    expect(page.locator("#data-learned .render .cut")).to_have_count(0)
    expect(page.locator("#data-parity")).to_contain_text("Training and chat are identical")

    write(page.locator("#data-length input, #data-length textarea"), "40")
    page.locator("#data-length input, #data-length textarea").press("Enter")
    expect(page.locator("#data-learned .render .cut")).to_have_count(4)
    expect(page.locator("#data-learned .figures")).to_contain_text("are cut at 40 tokens")
    page.locator("#data-learned-later").click()
    expect(page.locator("#data-learned .tokens")).to_contain_text("row 5:")

    choose(page, "#data-template", "Alpaca with ### End")
    expect(page.locator("#data-written .learned")).to_contain_text("### End")
    page.get_by_role("button", name=re.compile("Set max_length to P99")).click()
    expect(page.locator("#data-notice")).to_contain_text("here and on the Train tab")
    expect(page.locator("#data-learned .render .cut")).to_have_count(0)
    chosen = page.locator("#data-length input, #data-length textarea").input_value()
    page.get_by_role("button", name="Next: train on this").click()
    page.get_by_role("button", name=re.compile("All options")).click()

    expect(page.locator("#option-max_length input")).to_have_value(chosen)
    expect(page.locator("#option-chat_template input")).to_have_value("alpaca-end")
    expect(page.locator("#train-data input")).to_have_value(re.compile("seen"))


def test_versions_are_made_by_mouse(visit: Callable[..., Page], api: httpx.Client, planted: Path) -> None:
    source = (
        api.post("/datasets", files={"file": ("planted.jsonl", planted.read_bytes())}, data={"name": "source"}).raise_for_status().json()
    )
    page = visit("data", dataset=source["id"])
    opened(page, "source")
    page.get_by_role("button", name="Edit row 2").click()
    write(page.locator("#data-part-1 textarea"), "They were counted twice.")
    page.get_by_role("button", name="Save as a new version").click()
    opened(page, "source-v2")
    expect(page.locator("#data-kept .examples li").nth(1)).to_contain_text("They were counted twice.")
    expect(page.locator("#data-editor")).to_be_hidden()
    page.get_by_role("button", name="Remove row 1", exact=True).click()
    opened(page, "source-v3")
    expect(page.locator("#data-kept .examples li").first).to_contain_text("They were counted twice.")
    expect(page.locator("#data-head .facts").first).to_contain_text("21 rows")

    page.get_by_role("tab", name="Statistics").click()
    expect(page.locator("#data-figures .histogram")).to_have_count(2)
    expect(page.locator("#data-figures .shares")).to_contain_text("English")

    page.get_by_role("tab", name="New version").click()
    write(page.locator("#data-pick-count input"), "5")
    page.locator("#data-pick-count input").press("Tab")
    page.wait_for_timeout(500)  # the number is sent when its field is left
    page.get_by_role("button", name="Pick them").click()
    expect(page.locator("#data-notice")).to_contain_text("5 rows", timeout=300_000)
    opened(page, re.compile("best-5"))
    expect(page.locator("#data-head .facts").first).to_contain_text("5 rows")
    choose(page, "#data-others", "source · 22 rows")
    page.keyboard.press("Escape")
    write(page.locator("#data-new-name input, #data-new-name textarea").first, "together")
    page.get_by_role("button", name="Merge them").click()
    opened(page, "together")
    expect(page.locator("#data-head .facts").first).to_contain_text("27 rows")
    write(page.locator("#data-test-size input"), "0.2")
    page.get_by_role("button", name="Split in two").click()
    opened(page, "together-train")
    expect(page.locator("#data-notice")).to_contain_text("together-eval has")


def test_a_way_on_from_what_would_not_be_learned_as_meant_goes_along_to_train(visit: Callable[..., Page], api: httpx.Client) -> None:
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "<think>\n</think>\n\nYes."}]}
        for n in range(9)
    ]
    text = "\n".join(map(json.dumps, rows)).encode()
    kept = api.post("/datasets", files={"file": ("rash.jsonl", text)}, data={"name": "rash"}).raise_for_status().json()
    page = visit("data", dataset=kept["id"])
    opened(page, "rash")
    page.get_by_role("tab", name="What is learned").click()
    ways = page.locator("#data-learned .ways")
    expect(ways).to_contain_text("An empty block of reasoning is learned in 9 of 9 rows")
    ways.get_by_role("button", name="Train with this").click()
    expect(page.locator("#train-notice")).to_contain_text("reasoning=context")
    expect(page.locator("#train-data input")).to_have_value(re.compile("rash"))
    expect(page.locator("#train-preview")).to_contain_text("Yes.")
    expect(page.locator("#train-preview")).to_contain_text("(0 of 9) are cut at 512 tokens")
    expect(page.locator("#train-preview .ways")).to_have_count(0)

    page.get_by_role("button", name=re.compile("All options")).click()
    choose(page, "#option-reasoning", "learn")
    page.locator("#train-preview .ways").get_by_role("button", name="Set it").click()
    expect(page.locator("#option-reasoning input")).to_have_value("context")
    expect(page.locator("#train-preview .ways")).to_have_count(0)
