"""`studio demo`: data, an NF4 QLoRA job through the queue, chat, and base against tuned on held-out rows.

Nothing of it is staged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from studio import supervisor
from studio.catalogue import hardware
from studio.catalogue.demos import DEMOS
from studio.commands.terminal import follow, open_studio
from studio.errors import StudioError
from studio.records import PENDING, DemoChat, DemoJudge, DemoResult, DemoScore, JobDetail, JobStatus, MatchScore
from studio.services import Studio
from studio.settings import Settings
from studio.types import GenerationParams

DEMO = DEMOS["router"]
OPTIONS = {**DEMO.options, "report_rows": 0}  # what a report would say is said here, on rows that were held out
BASE = "starter"
WARM_SHARE = 0.6  # of the training: from here the engine loads beside it, and is ready when the training ends


def run(settings: Settings, say: Callable[[str], None]) -> DemoResult:
    """The whole loop. Raises StudioError when a job of it fails."""
    started = time.monotonic()
    with supervisor.assistance(settings, say, queues=("gpu", "light"), engine=True) as assisted:
        studio = open_studio(assisted)
        # named by what they are; a number joins where an earlier demo has the name
        learned = studio.datasets.add(DEMO.train_path, filename=f"{DEMO.name}.jsonl")
        held_out = studio.datasets.add(DEMO.eval_path, filename=f"{DEMO.name}-held-out.jsonl")
        say(f"Data: {learned.rows} rows to learn ({learned.name}), {held_out.rows} held out ({held_out.name}).")
        options = dict(OPTIONS)
        if (refusal := hardware.refusal()) is not None:
            say(f"{refusal.problem} {refusal.fix} The demo's small model trains on the processor.")
            options["device"] = "cpu"
        job = studio.jobs.submit(data=learned.id, base_model=BASE, recipe="qlora-sft", options=options)
        threading.Thread(target=_warm, args=(studio, job.id), daemon=True).start()
        job = _succeeded(follow(studio, job.id))
        adapter = studio.adapters.show(job.adapter or "")
        comparison = studio.comparisons.create(data=held_out.id, base_model=BASE, contestants=["base", adapter.name])
        _succeeded(follow(studio, str(comparison.job)))
        scores = studio.comparisons.show(comparison.id).scores
        judgement = studio.judging.judge(comparison.id, "reference")
        _succeeded(follow(studio, str(judgement.job)))
        judged = studio.judging.show(judgement.id)
        question = (studio.datasets.rows(held_out.id, limit=1)[0].messages or [])[0].content
        chat = studio.chat.answer(
            ["base", adapter.name],
            [{"role": "user", "content": question}],
            GenerationParams(temperature=0),
            base_model=BASE,
        )
    return DemoResult(
        job=job.id,
        adapter=adapter.id,
        comparison=comparison.id,
        before=_score(scores["base"]),
        after=_score(scores[adapter.name]),
        judge=DemoJudge(
            judge=judged.judge,
            win_rate=(judged.win_rate or {}).get(adapter.name),
            ci95=(judged.ci95 or {}).get(adapter.name),
            swap_consistency=judged.swap_consistency,
        ),
        chat=DemoChat(question=question, answers=chat),
        seconds=round(time.monotonic() - started, 1),
    )


def _score(score: MatchScore) -> DemoScore:
    assert score.exact_match is not None, "the demo's references are no essays"
    return DemoScore(exact_match=score.exact_match, n=score.n)


def text(result: DemoResult) -> str:
    """The result for a person."""
    answers = [f"  {answer.contestant}: {answer.text}" for answer in result.chat.answers]
    scores = [
        f"  {when}: {score.exact_match:.2f} of {score.n} rows" for when, score in (("before", result.before), ("after", result.after))
    ]
    return "\n".join(
        [
            f"Asked: {result.chat.question}",
            *answers,
            "Exact match on rows the training never saw:",
            *scores,
            _won(result.judge),
            f"The starter is a toy; the loop is the one your own data and model go through. {result.seconds:.0f} s.",
        ]
    )


def _won(judge: DemoJudge) -> str:
    if judge.win_rate is None or judge.ci95 is None:
        return f"The {judge.judge} judge has no verdict."
    low, high = judge.ci95
    rate = f"{judge.win_rate:.2f} ({low:.2f} to {high:.2f})"
    return f"The adapter wins {rate} against its base by the {judge.judge} judge."


def _succeeded(job: JobDetail) -> JobDetail:
    if job.status != JobStatus.SUCCEEDED:
        fix = job.fix or f"See `studio jobs logs {job.id}`."
        raise StudioError(f"{job.name} ended {job.status}. {job.reason}".strip(), fix)
    return job


def _warm(studio: Studio, job_id: str) -> None:
    """Make the engine load its libraries and the base while the training ends.

    Whatever goes wrong here shows when it is asked in earnest.
    """
    while (job := studio.jobs.show(job_id)).status in PENDING:
        step, steps = job.progress.step or 0, job.progress.max_steps
        if steps and step >= WARM_SHARE * steps:
            break
        time.sleep(0.5)
    try:
        params = GenerationParams(max_new_tokens=1, temperature=0)
        studio.chat.answer([BASE], [{"role": "user", "content": "Hello"}], params)
    except StudioError:
        return
