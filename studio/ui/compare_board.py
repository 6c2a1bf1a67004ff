"""What the verdicts come to: leaderboard, agreement of people and judges, and the preference set that trains the next adapter."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.errors import StudioError
from studio.evaluation.verdicts import PERSON
from studio.records import ContestantPair, Leaderboard, RaterPair, Rating
from studio.services import Studio
from studio.ui import measured, pieces, words
from studio.ui.compare_judge import rater_row
from studio.ui.handlers import busy, tells
from studio.ui.page import Frame

HERE, ON_DATA, EVERYWHERE = "this comparison", "all on the same dataset", "all comparisons"
WHO = {"both": "People, and judges where nobody voted", "human": "People only", "judge": "Judges only"}


class BoardPart:
    """Ratings on request, since they are computed; then the way on to training."""

    def __init__(self, studio: Studio, page: Frame) -> None:
        self._studio = studio
        self._page = page
        with gr.Accordion("Leaderboard and agreement", open=False, elem_id="compare-board"):
            with gr.Row():
                self.scope = gr.Radio(
                    [HERE, ON_DATA, EVERYWHERE],
                    value=HERE,
                    label="Of",
                    info="This comparison, those on the rows of its dataset, or all that were judged or voted on.",
                    elem_id="board-scope",
                )
                self.human_only = gr.Checkbox(False, label="People's votes only", info="Leave out what judges said.")
            self.rate = gr.Button("Show the leaderboard", elem_id="board-show")
            self.notice = pieces.panel(elem_id="board-notice", elem_classes="notice-place")
            self.board = pieces.panel(elem_id="board")
        with gr.Accordion("Make preferences, and train on them", open=False, elem_id="compare-preferences"):
            self.source = gr.Radio(
                [(text, key) for key, text in WHO.items()],
                value="both",
                label="Whose word counts",
                info="Their verdicts say which answer is the better one.",
            )
            self.margin = gr.Slider(
                0,
                1,
                value=0.5,
                step=0.25,
                label="How decided a pair must be",
                info="1 takes only pairs with the same winner in both orders; 0.5 also those where one order was a tie.",
            )
            self.name = gr.Textbox("", label="Name of the dataset", info="Empty makes one.", max_lines=1, elem_id="preferences-name")
            self.make = gr.Button("Make preferences", elem_id="preferences-make")
            self.made_notice = pieces.panel(elem_id="preferences-notice", elem_classes="notice-place")
            self.made = gr.State("")
            with gr.Row(elem_classes="next"):
                self.train = gr.Button("Next: train on these preferences (DPO)", elem_id="preferences-train", visible=False)

    def wire(self) -> None:
        comparison = self._page.place.comparison
        self.rate.click(
            tells(self.notice)(self.show),
            inputs=[comparison, self.scope, self.human_only],
            outputs=[self.notice, self.board],
            **busy(self.board),
        )
        self.make.click(
            tells(self.made_notice)(self.make_preferences),
            inputs=[comparison, self.source, self.margin, self.name],
            outputs=[self.made_notice, self.made, self.train, self.name],
            **busy(self.made_notice),
        )

    def show(self, comparison: str, scope: str, human_only: bool) -> dict[Any, Any]:
        if not comparison:
            raise StudioError("There is nothing to rate yet.", "Compare first, then judge or vote.")
        chosen, data = [], None
        if scope == HERE:
            chosen = [comparison]
        elif scope == ON_DATA:
            data = self._studio.comparisons.show(comparison).data
            if not data:
                raise StudioError("This comparison asked no dataset.", f"Choose {HERE} or {EVERYWHERE}.")
        found = self._studio.ratings.leaderboard(chosen, human_only=human_only, with_facts=True, data=data)
        raters = self._studio.ratings.agreement(comparison).pairs
        figures = self._studio.comparisons.metrics(comparison).contestants
        table = measured.measures(figures, [words.short(name) for name in figures])
        return {self.board: pieces.piece("board", **_board(found), **_people_first(raters), **table)}

    def make_preferences(self, comparison: str, source: Any, margin: float, name: str) -> dict[Any, Any]:
        if not comparison:
            raise StudioError("There is nothing to learn from yet.", "Compare first, then judge or vote.")
        made = self._studio.preferences.make([comparison], name=name.strip() or None, min_margin=float(margin), source=source)
        left_out = ", ".join(f"{count} {reason}" for reason, count in made.provenance["left_out"].items())
        said = f"{made.name}: {words.count(made.rows, 'pair')}."
        if left_out:
            said += f" Left out: {left_out}."
        return {self.made_notice: pieces.said(said), self.made: made.id, self.train: gr.Button(visible=True), self.name: ""}


def _board(found: Leaderboard) -> dict[str, Any]:
    pairs: list[str] = []
    if len(found.contestants) > 2:  # of two the table says it
        pairs = [_pair(row) for row in found.pairs]
    return {
        "rows": [_row(row) for row in found.contestants],
        "warnings": found.warnings,
        "pairs": pairs,
        "first": words.share(found.position.first_win_rate),
        "swap": words.share(found.position.swap_consistency),
    }


def _row(row: Rating) -> dict[str, Any]:
    rating, training = f"{row.bradley_terry:.0f}", "–"
    if row.bradley_terry_ci95:
        low, high = row.bradley_terry_ci95
        rating += f" ({low:.0f} to {high:.0f})"
    if row.training_seconds:
        training = f"{row.training}, {words.duration(row.training_seconds)}"
    return {
        "name": words.short(row.name),
        "rating": rating,
        "elo": f"{row.elo:.0f}",
        "win_rate": words.share_with_interval(row.win_rate, row.ci95),
        "games": row.games,
        "match": words.share(row.exact_match) or "–",
        "size": words.size(row.bytes) if row.bytes else "–",
        "seconds": words.duration(row.seconds_per_answer) or "–",
        "training": training,
    }


def _pair(row: ContestantPair) -> str:
    verdict = "differ" if row.differs else "can't be told apart"
    return f"{row.a} and {row.b} {verdict} (p {row.p_corrected:.3f} after correction, {row.games} games)"


def _people_first(raters: list[RaterPair]) -> dict[str, Any]:
    """Pairs of raters, those of two people first; and a word where people can't be compared yet."""
    people = [row for row in raters if row.a.startswith(PERSON) and row.b.startswith(PERSON)]
    shown = [rater_row(row) for row in (*people, *(row for row in raters if row not in people))]
    alone = ""
    if people and not any(row.n for row in people):
        alone = (
            "No two people have voted on the same pair yet: every third ballot is one that everybody gets, so it takes a few votes more."
        )
    return {"raters": shown, "alone": alone}
