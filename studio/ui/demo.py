"""The demo of the Start tab: which rows, which job, and how far it has come, found by name among what is kept.

Knows nothing of the page.
"""

from __future__ import annotations

from typing import Any

from studio.catalogue.demos import DEMOS
from studio.errors import StudioError
from studio.records import Comparison, Dataset, Job, JobDetail, JobKind, JobStatus
from studio.services import Studio
from studio.ui import choices

NAME = "demo-router"  # of dataset, job and adapter
DEMO = DEMOS["router"]  # the one that `studio demo` runs
HELD_OUT = DEMO.eval_path
MAX_HELD_OUT = 64
CONVERSATIONS_READ = 30  # newest ones that are searched for the demo's answer


class Demo:
    """Each step is a call of the services that any other page could make."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def state(self) -> dict[str, Any]:
        """{"dataset", "job", "adapter"}: records or None; "chatted", "compared": whether it happened."""
        dataset = next((row for row in self._studio.datasets.list() if row.name == NAME), None)
        jobs = [job for job in self._studio.jobs.list() if job.kind == JobKind.TRAIN and job.name.startswith(NAME)]
        succeeded = [job for job in jobs if job.status == JobStatus.SUCCEEDED]
        job = next(iter(succeeded or jobs), None)
        adapter = next((row for row in self._studio.adapters.list() if job and row.job == job.id), None)
        name = adapter.name if adapter else ""
        return {
            "dataset": dataset,
            "job": job,
            "adapter": adapter,
            "chatted": bool(adapter) and self._has_answered(f"{choices.STARTER}:{name}"),
            "compared": bool(adapter) and any(name in row.contestants and not row.training for row in self._studio.comparisons.list()),
        }

    def add(self) -> Dataset:
        return self._studio.datasets.add(DEMO.train_path, name=NAME)

    def train(self) -> JobDetail:
        data = self._needed("dataset", "Add the demo rows first.")["id"]
        # after a failed try the name is taken; the next one gets a number
        name = NAME if self.state()["job"] is None else None
        return self._studio.jobs.submit(data=data, base_model=choices.STARTER, options=DEMO.options, name=name)

    def job(self) -> Job:
        job: Job = self._needed("job", "Train the adapter first.")
        return job

    def contestant(self) -> str:
        return f"{choices.STARTER}:{self._needed('adapter', 'Wait for the training to end.')['name']}"

    def question(self) -> str:
        """One that was kept back from training."""
        return str(self._held_out(1)[0]["prompt"])

    def compare(self) -> Comparison:
        """Base and adapter on all rows that were kept back."""
        adapter = self._needed("adapter", "Wait for the training to end.")
        return self._studio.comparisons.create(
            prompts=self._held_out(MAX_HELD_OUT), base_model=choices.STARTER, contestants=["base", adapter["name"]]
        )

    def _held_out(self, rows: int) -> list[dict[str, Any]]:
        talks = [row.messages or [] for row in self._studio.datasets.inspect(HELD_OUT, rows=rows).preview]
        return [{"prompt": talk[0].content, "reference": talk[-1].content} for talk in talks]

    def _needed(self, what: str, fix: str) -> Any:
        found = self.state()[what]
        if found is None:
            raise StudioError("This step of the demo comes later.", fix)
        return found

    def _has_answered(self, contestant: str) -> bool:
        chats = self._studio.chat.conversations()[:CONVERSATIONS_READ]
        return any(message.contestant == contestant for chat in chats for message in self._studio.chat.messages(chat.id))
