"""The page as one Blocks, and the links between its tabs. The tabs themselves are in their own files."""

from __future__ import annotations

from typing import Any

import gradio as gr

from studio.services import Studio
from studio.ui import choices, data_learned, pieces
from studio.ui.chat import ChatTab
from studio.ui.compare import BASE, CompareTab
from studio.ui.compress import CompressTab
from studio.ui.data import DataTab
from studio.ui.demo import Demo
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.jobs import JobsTab
from studio.ui.models import ModelsTab, chat_choice
from studio.ui.page import TABS, Page, Place, go
from studio.ui.start import StartTab
from studio.ui.strip import Strip
from studio.ui.train import TrainTab


def build(studio: Studio) -> gr.Blocks:
    """The whole page over `studio`'s services."""
    with gr.Blocks(title="Adapter Studio", analytics_enabled=False, fill_width=False, delete_cache=(3600, 86400)) as blocks:
        strip = Strip(studio)
        place = Place.build()
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            page = Page(place, tabs)
            start, data, train = StartTab(studio, page), DataTab(studio, page), TrainTab(studio, page)
            jobs, chat, compress = JobsTab(studio, page), ChatTab(studio, page), CompressTab(studio, page)
            compare = CompareTab(studio, page)
            models = ModelsTab(studio, page)
        compress.wire_chat(chat)
        strip.wire(page, blocks)
        strip.shown.change(steady(chat.share), outputs=[chat.sharing], **QUIET)
        start.wire(blocks, chat.contestant, chat.message)
        Links(studio, page).wire(data, train, jobs, chat, compare)
        _chat_with_model(studio, page, models, chat)
        _restore(blocks, page)
    return blocks


def _chat_with_model(studio: Studio, page: Page, models: ModelsTab, chat: ChatTab) -> None:
    def open_chat(chosen: str) -> dict[Any, Any]:
        who = chat_choice(studio, chosen)
        return {page.tabs: go("chat"), page.place.chat: "", chat.contestant: gr.Dropdown(choices=[(who, who)], value=who)}

    models.chat.click(open_chat, inputs=[page.place.model], outputs=[page.tabs, page.place.chat, chat.contestant], **QUIET)


def _restore(blocks: gr.Blocks, page: Page) -> None:
    """On load, go where the URL says; afterwards keep the URL true."""
    boxes = page.place.boxes()
    page.place.keep_in_url()
    page.tabs.change(None, outputs=[page.place.tab], js="() => studio.currentTab()", **QUIET)
    blocks.load(_arrive, inputs=boxes, outputs=[page.tabs, *boxes], js="() => studio.start()", **QUIET)


def _arrive(tab: str, *rest: str) -> list[Any]:
    there = tab if tab in TABS else "start"
    return [go(there), there, *rest]


class Links:
    """The buttons that lead from one tab to the next with what was chosen."""

    def __init__(self, studio: Studio, page: Page) -> None:
        self._studio = studio
        self._page = page

    def wire(self, data: DataTab, train: TrainTab, jobs: JobsTab, chat: ChatTab, compare: CompareTab) -> None:
        place, tabs = self._page.place, self._page.tabs
        chosen = data.learned.choices
        handed = [train.base_model, train.form.field("max_length"), train.form.field("chat_template")]
        data.train.click(self._training_on(train), inputs=[place.dataset, *chosen], outputs=[tabs, train.data, *handed], **QUIET)
        data.learned.panel.select(
            tells(data.notice)(self._handing_length(data, train)), outputs=[data.notice, data.learned.max_length, handed[1]], **QUIET
        ).then(steady(data.look), **data.looked)
        data.blank.select(tells(data.notice)(self._adding_demo), outputs=[data.notice, place.dataset], **busy(data.rows))
        told_jobs, told_chat = tells(jobs.notice), tells(chat.notice)
        to_chat = [tabs, place.chat, chat.contestant, chat.message]
        jobs.chat.click(told_jobs(self._chatting(chat)), inputs=[place.job], outputs=[jobs.notice, *to_chat], **QUIET)
        jobs.again.click(
            told_jobs(self._changing(train)),
            inputs=[place.job],
            outputs=[jobs.notice, tabs, train.data, train.base_model, *train.form.fields],
            **QUIET,
        )
        compare.board.train.click(
            steady(self._preferring(train)),
            inputs=[place.comparison, compare.board.made],
            outputs=[tabs, train.data, train.base_model, train.recipe],
            **QUIET,
        )
        to_compare = [tabs, compare.base_model, compare.contestants, compare.prompt]
        jobs.compare.click(told_jobs(self._comparing(compare)), inputs=[place.job], outputs=[jobs.notice, *to_compare], **QUIET)
        chat.compare.click(
            told_chat(self._comparing_chat),
            inputs=[place.chat, chat.contestant],
            outputs=[chat.notice, tabs, place.comparison],
            **busy(chat.live),
        )

    def _preferring(self, train: TrainTab) -> Any:
        def train_on_preferences(comparison_id: str, dataset_id: str) -> dict[Any, Any]:
            """The Train tab with the preference set, its base and the recipe for it."""
            base = self._studio.comparisons.show(comparison_id)["base_model"]
            return {
                self._page.tabs: go("train"),
                train.data: choices.update(choices.datasets(self._studio), dataset_id),
                train.base_model: choices.update(choices.base_models(self._studio), base),
                train.recipe: "dpo",
            }

        return train_on_preferences

    def _training_on(self, train: TrainTab) -> Any:
        def train_on(dataset_id: str, base_model: str | None, max_length: Any, template: str) -> dict[Any, Any]:
            """The Train tab with the dataset, and with what was chosen beside its rows where that is not the usual."""
            update = {
                self._page.tabs: go("train"),
                train.data: choices.update(choices.datasets(self._studio), dataset_id),
                train.base_model: choices.update(choices.base_models(self._studio), base_model),
            }
            if (length := data_learned.length(max_length)) != data_learned.MAX_LENGTH:
                update[train.form.field("max_length")] = length
            if template:
                update[train.form.field("chat_template")] = template
            return update

        return train_on

    def _handing_length(self, data: DataTab, train: TrainTab) -> Any:
        def hand(event: gr.EventData) -> dict[Any, Any]:
            """The longest row that was offered, for the rows shown here and for the next training."""
            length = data_learned.length(int(event._data["length"]))
            said = pieces.said(f"max_length is {length:,} here and on the Train tab.")
            return {data.notice: said, data.learned.max_length: length, train.form.field("max_length"): length}

        return hand

    def _changing(self, train: TrainTab) -> Any:
        def set_up_again(job_id: str) -> dict[Any, Any]:
            """The Train tab with the data, the base and every option of a job that has ended: a clone to be edited."""
            job = self._studio.jobs.show(job_id)
            return {
                self._page.tabs: go("train"),
                train.data: choices.update(choices.datasets(self._studio), job["data"]),
                train.base_model: choices.update(choices.base_models(self._studio), job["base_model"]),
                **train.form.filled(job["config"]),
            }

        return set_up_again

    def _adding_demo(self) -> dict[Any, Any]:
        return {self._page.place.dataset: Demo(self._studio).add()["id"]}

    def _chatting(self, chat: ChatTab) -> Any:
        def open_chat(job_id: str) -> dict[Any, Any]:
            """A new conversation with the job's adapter, a question it should know already typed."""
            adapter = self._adapter(job_id)
            who = f"{adapter['base_model']}:{adapter['name']}"
            return {
                self._page.tabs: go("chat"),
                self._page.place.chat: "",
                chat.contestant: gr.Dropdown(choices=[(who, who)], value=[who]),
                chat.message: choices.example_for(self._studio, adapter["name"]),
            }

        return open_chat

    def _comparing(self, compare: CompareTab) -> Any:
        def open_compare(job_id: str) -> dict[Any, Any]:
            adapter = self._adapter(job_id)
            base = adapter["base_model"]
            return {
                self._page.tabs: go("compare"),
                compare.base_model: gr.Dropdown(choices=choices.base_models(self._studio), value=base),
                compare.contestants: compare.offer(base, [BASE, adapter["name"]]),
                compare.prompt: choices.example_for(self._studio, adapter["name"]),
            }

        return open_compare

    def _comparing_chat(self, chat_id: str, contestants: list[str] | None) -> dict[Any, Any]:
        """Ask the base and whoever answered here every question of this conversation."""
        rows = self._studio.chat.messages(chat_id)
        questions = list(dict.fromkeys(row["content"] for row in rows if row["role"] == "user"))
        answered = [row["contestant"] for row in rows if row["role"] == "assistant"] or (contestants or [""])
        base, _, _ = answered[-1].partition(":")
        adapters = list(dict.fromkeys(name.partition(":")[2] for name in answered if name.startswith(base + ":")))
        made = self._studio.comparisons.create(
            prompts=[{"prompt": question} for question in questions], base_model=base, contestants=[BASE, *adapters]
        )
        return {self._page.tabs: go("compare"), self._page.place.comparison: made["id"]}

    def _adapter(self, job_id: str) -> dict[str, Any]:
        return dict(self._studio.adapters.show(self._studio.jobs.show(job_id)["adapter"]))
