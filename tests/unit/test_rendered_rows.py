"""What all rows of a dataset come to, and how one row is cut: numbers that are only shown or that decide a launch."""

from __future__ import annotations

import pytest

from studio.commands.data import _marked, _rendered_text
from studio.datasets.rendering import Rendered
from studio.errors import DatasetError
from studio.records import Excerpt, Finding, FixAction, RenderedRow, Rendering, Severity
from studio.services import rendered_rows
from studio.types import Example
from studio.ui import findings


class Fixed:
    """A renderer of texts whose letters are tokens; those that are upper case are learned, "!" is refused."""

    def example(self, example: Example, max_length: int | None = None) -> Rendered:
        text = example.text or ""
        if "!" in text:
            raise DatasetError("The chat template refuses this conversation: too loud.", "Speak lower.")
        stop = len(text) if max_length is None else max_length
        offsets = [(n, n + 1) for n in range(len(text))]
        learned = [letter.isupper() for letter in text]
        return Rendered(text, list(range(len(text)))[:stop], learned[:stop], offsets[:stop], len(text) > stop, len(text))


def checked(texts: list[str], max_length: int, rows: int = 9) -> rendered_rows.TrainingCheck:
    examples = enumerate((Example(text=text) for text in texts), start=1)
    return rendered_rows.check(Fixed(), examples, max_length, rows)  # type: ignore[arg-type]


def shown(text: str, max_length: int) -> RenderedRow:
    return rendered_rows.rendered_row(Fixed(), Example(text=text), 4, max_length)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "teaches"),
    [
        ("Abc", False),  # the first token is never predicted
        ("aBc", True),
        ("abC", True),
        ("abcD", False),  # what is learned is cut off
        ("abc", False),
        ("a!B", False),
        ("", False),
    ],
)
def test_a_row_teaches_by_a_token_behind_its_first_that_is_not_cut(text: str, teaches: bool) -> None:
    assert checked([text], 3).share_without_learned_tokens == 1 - teaches


def test_shares_are_of_the_rows_that_were_looked_at() -> None:
    found = checked(["aBc", "abcD", "a!", "aBcDe", "Ab"], 3, rows=50)

    assert (found.rows, found.checked) == (50, 5)
    assert found.share_truncated == 2 / 5 and found.share_without_learned_tokens == 3 / 5
    assert [(problem.line, problem.fix) for problem in found.problems] == [(3, "Speak lower.")] and found.problem_count == 1
    assert (found.p50, found.p95, found.p99, found.max, found.mean) == (3, 5, 5, 5, 3.5)  # whole lengths, of those that render
    assert sum(part.count for part in found.histogram) == 4


def test_a_dataset_without_rows_has_no_share() -> None:
    found = checked([], 3, rows=0)
    assert (found.checked, found.share_truncated, found.share_without_learned_tokens, found.p99, found.mean) == (0, 0, 0, 0, 0)


def test_a_row_is_cut_behind_max_length_and_nothing_is_lost() -> None:
    row = shown("abCdE", 3)
    assert (row.row, row.text, row.length, row.truncated) == (4, "abCdE", 5, True)
    assert (row.ids, row.tokens, row.learned) == ([0, 1, 2], ["a", "b", "C"], [False, False, True])
    assert (row.cut, row.cut_learned) == (["d", "E"], [False, True])

    whole = shown("abCdE", 5)
    assert not whole.truncated and whole.cut == [] and whole.cut_learned == [] and whole.learned == [*row.learned, *row.cut_learned]


def test_a_row_that_is_refused_is_empty_and_says_why() -> None:
    row = shown("a!", 3)
    assert row.problem == "The chat template refuses this conversation: too loud. Speak lower."
    assert (row.length, row.ids, row.learned, row.cut, row.truncated) == (0, [], [], [], False)
    assert _marked(row) == row.problem


def test_the_terminal_counts_what_is_learned_and_cut() -> None:
    assert _marked(shown("aBCdE", 9)) == "a«BC»d«E»"
    figures = checked(["aBc", "abcD", "a!", "aBcDe", "Ab"], 3)
    rendering = Rendering(
        **{**dict(figures), "rows": [shown("aBCde", 3), shown("ab", 3)]}, total=5, max_length=3, template_name="plain", template_sha256="0"
    )
    assert _rendered_text(rendering).splitlines() == [
        "[3 tokens, 2 learned, cut]",
        "a«BC»",
        "",
        "[2 tokens, 0 learned]",
        "ab",
        "",
        "All rows: cut at 3 tokens 40.0%, without learned tokens 60.0%; tokens p50 3, p95 5, p99 5.",
        "Row 3: The chat template refuses this conversation: too loud. Speak lower.",
    ]


def test_the_page_counts_the_rows_of_a_finding_that_it_does_not_show() -> None:
    finding = Finding(
        check="pii", title="", count=30, rows=list(range(1, 31)), examples=[Excerpt(row=1, text="")], explanation="", fix="",
        action=FixAction.MASK, severity=Severity.BAD,
    )  # fmt: skip
    drawn = findings._finding(finding, 120)
    assert (len(drawn["rows"]), drawn["more"], drawn["share"], drawn["button"]) == (24, 6, 0.25, "Mask in 30 rows")
    few = findings._finding(finding.model_copy(update={"count": 2, "rows": [3, 9]}), 4)
    assert (few["rows"], few["more"], few["share"]) == ([3, 9], 0, 0.5)
    assert findings.BUTTONS.keys() == set(FixAction)


def test_a_template_is_shown_with_a_system_prompt_unless_it_refuses_one() -> None:
    class Strict(Fixed):
        def __init__(self, takes_system: bool) -> None:
            self.takes_system = takes_system

        def example(self, example: Example, max_length: int | None = None) -> Rendered:
            turns = example.messages or []
            if turns[0].role == "system" and not self.takes_system:
                raise DatasetError("No system prompts.", "Leave it out.")
            return super().example(Example(text=" ".join(turn.role for turn in turns)), max_length)

    strict, kind = (rendered_rows.preview(Strict(takes)) for takes in (False, True))  # type: ignore[arg-type]
    assert kind.text.startswith("system user") and strict.text.startswith("user") and strict.problem is None
