"""Links from one tab into another, with what the reader has chosen. studio.ui.tabs lists each with its first tab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from studio.records import Adapter
from studio.services import Studio
from studio.ui import choices, data_learned, pieces
from studio.ui.chat import ChatTab
from studio.ui.compare import BASE, CompareTab
from studio.ui.compress import CompressTab
from studio.ui.data import DataTab
from studio.ui.demo import DemoSteps
from studio.ui.handlers import QUIET, busy, steady, tells
from studio.ui.jobs import JobsTab
from studio.ui.models import ModelsTab, chat_choice
from studio.ui.page import BuiltPage, go
from studio.ui.start import StartTab
from studio.ui.strip import Strip
from studio.ui.train import TrainTab

Update = dict[Any, Any]  # components of the page with their new values


def demo_to_chat(page: BuiltPage) -> None:
    """The demo's fourth step: a question for the adapter that it trained."""
    chat = page.of(ChatTab)
    page.of(StartTab).wire(page.blocks, chat.contestant, chat.message)


def rows_to_train(page: BuiltPage) -> None:
    """A training on the chosen rows, with the options that were set beside them and are not the defaults."""
    data, train = page.of(DataTab), page.of(TrainTab)

    def train_on(*chosen: Any) -> Update:
        return _as_beside_the_rows(page, *chosen)

    outputs = [page.tabs, train.data, train.base_model, *train.form.fields]
    data.train.click(train_on, inputs=[page.place.dataset, *data.learned.choices], outputs=outputs, **QUIET)


def learned_to_train(page: BuiltPage) -> None:
    """Buttons beside the rows: the length of the longest row as max_length, here and on Train; or a training with a way on."""
    data, train = page.of(DataTab), page.of(TrainTab)

    def take(event: gr.EventData, dataset_id: str, base_model: str | None, length: Any, template: str) -> Update:
        if event._data["act"] == "way":
            way = data.learned.way(dataset_id, base_model, length, template, event._data)
            told = {train.notice: pieces.said(data_learned.taken(way))}
            return {**_as_beside_the_rows(page, dataset_id, base_model, length, template), **train.form.set(way.change), **told}
        tokens = data_learned.length(int(event._data["length"])) or 0
        said = pieces.said(f"max_length is {tokens:,} here and on the Train tab.")
        return {data.notice: said, data.learned.max_length: str(tokens), **train.form.set({"max_length": tokens})}

    outputs = [data.notice, data.learned.max_length, page.tabs, train.data, train.base_model, train.notice, *train.form.fields]
    inputs = [page.place.dataset, *data.learned.choices]
    taken = data.learned.panel.select(tells(data.notice)(take), inputs=inputs, outputs=outputs, **QUIET)
    taken.then(steady(data.look), **data.looked)


def _as_beside_the_rows(page: BuiltPage, dataset_id: str, base_model: str | None, length: Any, template: str) -> Update:
    train = page.of(TrainTab)
    chosen = {"max_length": data_learned.length(length), "chat_template": template or None}
    update = {page.tabs: go("train"), **_data_and_base(page.studio, train, dataset_id, base_model)}
    return update | train.form.set({key: value for key, value in chosen.items() if value is not None})


def demo_rows(page: BuiltPage) -> None:
    """The demo's rows, where there are no others yet."""
    data = page.of(DataTab)

    def add() -> Update:
        return {page.place.dataset: DemoSteps(page.studio).add().id}

    data.blank.select(tells(data.notice)(add), outputs=[data.notice, page.place.dataset], **busy(data.rows))


def adapter_to_chat(page: BuiltPage) -> None:
    """A new conversation with the job's adapter, a question that it should know already typed."""
    jobs, chat = page.of(JobsTab), page.of(ChatTab)

    def open_chat(job_id: str) -> Update:
        adapter = _adapter(page.studio, job_id)
        who = f"{adapter.base_model}:{adapter.name}"
        return {
            page.tabs: go("chat"),
            page.place.chat: "",
            chat.contestant: gr.Dropdown(choices=[(who, who)], value=[who]),
            chat.message: choices.example_for(page.studio, adapter.name),
        }

    outputs = [page.tabs, page.place.chat, chat.contestant, chat.message]
    _from_job(page, jobs.chat, open_chat, outputs)


def adapter_to_compare(page: BuiltPage) -> None:
    """The job's adapter beside its base, with a question that it should know."""
    jobs, compare = page.of(JobsTab), page.of(CompareTab)

    def open_compare(job_id: str) -> Update:
        adapter = _adapter(page.studio, job_id)
        base = adapter.base_model
        return {
            page.tabs: go("compare"),
            compare.base_model: gr.Dropdown(choices=choices.base_models(page.studio), value=base),
            compare.contestants: compare.offer(base, [BASE, adapter.name]),
            compare.prompt: choices.example_for(page.studio, adapter.name),
        }

    _from_job(page, jobs.compare, open_compare, [page.tabs, compare.base_model, compare.contestants, compare.prompt])


def job_to_train(page: BuiltPage) -> None:
    """The data, the base and every option of a job that has ended: a clone to be edited."""
    jobs, train = page.of(JobsTab), page.of(TrainTab)

    def set_up_again(job_id: str) -> Update:
        job = page.studio.jobs.show(job_id)
        chosen = _data_and_base(page.studio, train, job.data, job.base_model)
        return {page.tabs: go("train"), **chosen, **train.form.filled(job.config)}

    _from_job(page, jobs.again, set_up_again, [page.tabs, train.data, train.base_model, *train.form.fields])


def conversation_to_compare(page: BuiltPage) -> None:
    """A comparison of the base and whoever answered, on every question of the conversation."""
    chat = page.of(ChatTab)

    def compare(chat_id: str, contestants: list[str] | None) -> Update:
        rows = page.studio.chat.messages(chat_id)
        questions = list(dict.fromkeys(row.content for row in rows if row.role == "user"))
        answered = [row.contestant for row in rows if row.role == "assistant"] or (contestants or [""])
        base, _, _ = answered[-1].partition(":")
        adapters = list(dict.fromkeys(name.partition(":")[2] for name in answered if name.startswith(base + ":")))
        made = page.studio.comparisons.create(
            prompts=[{"prompt": question} for question in questions],
            base_model=base,
            contestants=[BASE, *adapters],
        )
        return {page.tabs: go("compare"), page.place.comparison: made.id}

    outputs = [chat.notice, page.tabs, page.place.comparison]
    chat.compare.click(
        tells(chat.notice)(compare),
        inputs=[page.place.chat, chat.contestant],
        outputs=outputs,
        **busy(chat.live),
    )


def sharing_in_chat(page: BuiltPage) -> None:
    """The Chat tab says how it shares the machine with what the strip shows as running."""
    strip, chat = page.of(Strip), page.of(ChatTab)
    strip.shown.change(steady(chat.share), outputs=[chat.sharing], **QUIET)


def prompt_to_chat(page: BuiltPage) -> None:
    """The compressed prompt, typed into a new conversation with whoever reads it."""
    page.of(CompressTab).wire_chat(page.of(ChatTab))


def preferences_to_train(page: BuiltPage) -> None:
    """DPO on the preferences that were made of a comparison."""
    compare, train = page.of(CompareTab), page.of(TrainTab)

    def train_on_preferences(comparison_id: str, dataset_id: str) -> Update:
        base = page.studio.comparisons.show(comparison_id).base_model
        return {
            page.tabs: go("train"),
            **_data_and_base(page.studio, train, dataset_id, base),
            train.recipe: "dpo",
        }

    inputs, outputs = (
        [page.place.comparison, compare.board.made],
        [page.tabs, train.data, train.base_model, train.recipe],
    )
    compare.board.train.click(steady(train_on_preferences), inputs=inputs, outputs=outputs, **QUIET)


def model_to_chat(page: BuiltPage) -> None:
    """A new conversation with the chosen model or adapter."""
    models, chat = page.of(ModelsTab), page.of(ChatTab)

    def open_chat(chosen: str) -> Update:
        who = chat_choice(page.studio, chosen)
        return {
            page.tabs: go("chat"),
            page.place.chat: "",
            chat.contestant: gr.Dropdown(choices=[(who, who)], value=who),
        }

    models.chat.click(open_chat, inputs=[page.place.model], outputs=[page.tabs, page.place.chat, chat.contestant], **QUIET)


def _from_job(page: BuiltPage, button: gr.Button, open_tab: Callable[[str], Update], outputs: list[Any]) -> None:
    """`button` of the Jobs tab opens another tab with the shown job; errors are shown on the Jobs tab."""
    notice = page.of(JobsTab).notice
    button.click(tells(notice)(open_tab), inputs=[page.place.job], outputs=[notice, *outputs], **QUIET)


def _data_and_base(studio: Studio, train: TrainTab, dataset_id: str | None, base_model: str | None) -> Update:
    return {
        train.data: choices.choose(choices.datasets(studio), dataset_id),
        train.base_model: choices.choose(choices.base_models(studio), base_model),
    }


def _adapter(studio: Studio, job_id: str) -> Adapter:
    return studio.adapters.show(studio.jobs.show(job_id).adapter or "")
