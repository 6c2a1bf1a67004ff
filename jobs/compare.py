"""The light job `compare`: every contestant answers every prompt; answers are kept as they land, so a restart goes on."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from sqlalchemy import select

from jobs.light import LightContext, LightJobStopped
from studio.db.models import AnswerRow, ComparisonRow
from studio.engine.client import EngineClient
from studio.engine.protocol import Contestant
from studio.errors import EngineError
from studio.types import GenerationParams

CONCURRENCY = 16  # requests that wait together; the engine batches them


def run(context: LightContext) -> dict[str, Any]:
    """Answer what has no answer yet. Raises EngineError when the engine can't be reached, LightJobStopped when asked to end."""
    contestants = [Contestant.from_json(value) for value in context.config["contestants"]]
    params = GenerationParams.model_validate(context.config["params"])
    with context.db.read() as session:
        comparison = session.get_one(ComparisonRow, context.config["comparison"])
        rows = session.execute(select(AnswerRow.prompt_id, AnswerRow.contestant).where(AnswerRow.comparison_id == comparison.id))
        done = {(prompt_id, contestant) for prompt_id, contestant in rows}
    # prompt by prompt, so that a person who watches sees whole rows fill
    tasks = [(p, c) for p, c in itertools.product(comparison.prompts, contestants) if (p["id"], c.name) not in done]
    total = len(done) + len(tasks)
    context.progress(len(done), total)
    client = EngineClient.from_settings(context.settings, lane="batch")
    try:
        count = _answer_all(context, client, comparison.id, tasks, params, already=len(done), total=total)
    finally:
        client.close()
    return {"comparison": comparison.id, "answers": len(done) + count}


def _answer_all(
    context: LightContext,
    client: EngineClient,
    comparison_id: str,
    tasks: list[tuple[dict[str, Any], Contestant]],
    params: GenerationParams,
    already: int,
    total: int,
) -> int:
    count = 0
    remaining = iter(tasks)
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        waiting: set[Future[AnswerRow]] = set()
        try:
            while True:
                for prompt, contestant in itertools.islice(remaining, CONCURRENCY - len(waiting)):
                    waiting.add(pool.submit(_answer, client, comparison_id, prompt, contestant, params))
                if not waiting:
                    return count
                finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                answers = [future.result() for future in finished]
                if answers:
                    with context.db.write() as session:
                        session.add_all(answers)
                    count += len(answers)
                    context.progress(already + count, total)
                if context.stop_requested():
                    raise LightJobStopped
        finally:
            for future in waiting:
                future.cancel()


def _answer(
    client: EngineClient, comparison_id: str, prompt: dict[str, Any], contestant: Contestant, params: GenerationParams
) -> AnswerRow:
    """All turns of one prompt. What this prompt itself can't have (too long, say) is kept as the answer's error."""
    messages: list[dict[str, Any]] = []
    turns: list[str] = []
    prompt_tokens = completion_tokens = 0
    error = ""
    started = time.monotonic()
    try:
        for turn in prompt["turns"]:
            messages = [*messages, *turn]
            answer = client.chat(contestant, messages, params)
            turns.append(answer.text)
            messages = [*messages, {"role": "assistant", "content": answer.text}]
            prompt_tokens += answer.prompt_tokens
            completion_tokens += answer.completion_tokens
    except EngineError as exc:
        if exc.status >= 500 or exc.status in (401, 404, 429):
            raise  # the engine's trouble, not this prompt's: the job ends with the reason and can go on later
        error = str(exc)
        if len(prompt["turns"]) > 1:
            error = f"Turn {len(turns) + 1} of {len(prompt['turns'])} failed: {exc}"
    return AnswerRow(
        comparison_id=comparison_id,
        prompt_id=prompt["id"],
        contestant=contestant.name,
        text="" if error else turns[-1],
        turns=turns,
        seconds=time.monotonic() - started,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        error=error,
    )
