"""The demo of the Start tab: which rows, which job, and how far it has come, found by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from studio.catalogue.demos import DEMOS
from studio.errors import StudioError
from studio.records import Adapter, Comparison, Dataset, Job, JobDetail, JobKind, JobStatus
from studio.services import Studio
from studio.ui import choices

NAME = "demo-router"  # of dataset, job and adapter
DEMO = DEMOS["router"]  # the one that `studio demo` runs
HELD_OUT = DEMO.eval_path
MAX_HELD_OUT = 64
CONVERSATIONS_READ = 30  # newest ones that are searched for the demo's answer


@dataclass(frozen=True)
class DemoState:
    """How far the demo has come: records or None, and whether something happened."""

    dataset: Dataset | None
    job: Job | None
    adapter: Adapter | None
    chatted: bool
    compared: bool


class DemoSteps:
    """Each step is a call of the services that any other page could make."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def state(self) -> DemoState:
        dataset = next((row for row in self._studio.datasets.list() if row.name == NAME), None)
        jobs = [job for job in self._studio.jobs.list() if job.kind == JobKind.TRAIN and job.name.startswith(NAME)]
        succeeded = [job for job in jobs if job.status == JobStatus.SUCCEEDED]
        job = next(iter(succeeded or jobs), None)
        adapter = next((row for row in self._studio.adapters.list() if job and row.job == job.id), None)
        if adapter is None:
            return DemoState(dataset, job, None, chatted=False, compared=False)
        chatted = self._has_answered(f"{choices.STARTER}:{adapter.name}")
        return DemoState(dataset, job, adapter, chatted, compared=self._is_compared(adapter.name))

    def add(self) -> Dataset:
        return self._studio.datasets.add(DEMO.train_path, name=NAME)

    def train(self) -> JobDetail:
        state = self.state()
        if state.dataset is None:
            raise _too_early("Add the demo rows first.")
        name = None  # after a failed try the name is taken; the next one gets a number
        if state.job is None:
            name = NAME
        return self._studio.jobs.submit(
            data=state.dataset.id,
            base_model=choices.STARTER,
            options=DEMO.options,
            name=name,
        )

    def job(self) -> Job:
        job = self.state().job
        if job is None:
            raise _too_early("Train the adapter first.")
        return job

    def contestant(self) -> str:
        return f"{choices.STARTER}:{self._adapter().name}"

    def question(self) -> str:
        """One that was held out."""
        return str(self._held_out(1)[0]["prompt"])

    def compare(self) -> Comparison:
        """Base and adapter on all rows that were held out."""
        return self._studio.comparisons.create(
            prompts=self._held_out(MAX_HELD_OUT),
            base_model=choices.STARTER,
            contestants=["base", self._adapter().name],
        )

    def _adapter(self) -> Adapter:
        adapter = self.state().adapter
        if adapter is None:
            raise _too_early("Wait for the training to end.")
        return adapter

    def _held_out(self, rows: int) -> list[dict[str, Any]]:
        talks = [row.messages or [] for row in self._studio.datasets.inspect(HELD_OUT, rows=rows).preview]
        return [{"prompt": talk[0].content, "reference": talk[-1].content} for talk in talks]

    def _has_answered(self, contestant: str) -> bool:
        chats = self._studio.chat.conversations()[:CONVERSATIONS_READ]
        return any(message.contestant == contestant for chat in chats for message in self._studio.chat.messages(chat.id))

    def _is_compared(self, adapter: str) -> bool:
        return any(adapter in row.contestants and not row.training for row in self._studio.comparisons.list())


def _too_early(fix: str) -> StudioError:
    return StudioError("This step of the demo comes later.", fix)
