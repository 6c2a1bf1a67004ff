"""/api: judging, votes, leaderboards, preferences. The use cases of studio.services, same JSON."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field

from studio.api.json_bodies import JsonRoute
from studio.api.paging import AskedPart
from studio.api.rest import Body, Here
from studio.records import (
    Agreement,
    Ballot,
    BallotChoice,
    Dataset,
    JudgeEstimate,
    Judgement,
    JudgeTemplate,
    Leaderboard,
    LostPrompt,
    PreferenceSource,
    Verdict,
    Vote,
)

router = APIRouter(route_class=JsonRoute, prefix="/api")


class NewJudgement(Body):
    judge: str | None = Field(
        default=None, description="reference, likelihood:MODEL, a model, or URL#MODEL; several with commas are a panel."
    )
    criteria: str = ""
    template: str | None = None
    budget_tokens: int | None = Field(default=None, ge=1, description="The judges of a panel share it.")
    probes: bool = True
    concurrency: int | None = Field(default=None, ge=1, le=64)


class NewVote(Body):
    voter: str
    ballot: str
    choice: BallotChoice


class NewPreferences(Body):
    comparisons: list[str]
    name: str | None = None
    min_margin: float = Field(default=0.5, ge=0, le=1)
    source: PreferenceSource = PreferenceSource.BOTH


class Corrections(Body):
    answers: dict[str, str] = Field(description="By prompt ID.")
    name: str | None = None


@router.get("/judges")
def judge_templates(studio: Here) -> list[JudgeTemplate]:
    """How a model can be asked."""
    return studio.judging.templates()


@router.post("/comparisons/{comparison}/judge", status_code=201)
def judge(studio: Here, comparison: str, body: NewJudgement) -> Judgement:
    """Queue a judgement; its readings are there when its job has succeeded."""
    return studio.judging.judge(
        comparison,
        body.judge,
        criteria=body.criteria,
        template=body.template,
        budget_tokens=body.budget_tokens,
        probes=body.probes,
        concurrency=body.concurrency,
    )


@router.get("/comparisons/{comparison}/judge/estimate")
def estimate(studio: Here, comparison: str, judge: str | None = None, template: str | None = None) -> JudgeEstimate:
    """What a judgement will take: questions, tokens, seconds where they can be known."""
    return studio.judging.estimate(comparison, judge, template=template)


@router.get("/comparisons/{comparison}/judgements")
def judgements(studio: Here, part: AskedPart, comparison: str) -> list[Judgement]:
    return part.told(studio.judging.list(comparison, part.page))


@router.get("/judgements/{judgement}")
def judgement(studio: Here, judgement: str) -> Judgement:
    return studio.judging.show(judgement)


@router.get("/judgements/{judgement}/verdicts")
def verdicts(
    studio: Here,
    judgement: str,
    prompt: str | None = None,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[Verdict]:
    """What was asked and replied, in the order it landed."""
    return studio.judging.verdicts(judgement, prompt=prompt, offset=offset, limit=limit)


@router.get("/comparisons/{comparison}/ballot")
def ballot(studio: Here, comparison: str, voter: str) -> Ballot:
    """Two answers without names."""
    return studio.ratings.ballot(comparison, voter)


@router.post("/comparisons/{comparison}/votes", status_code=201)
def vote(studio: Here, comparison: str, body: NewVote) -> Vote:
    """Who was who, once the vote is kept."""
    return studio.ratings.vote(comparison, body.voter, body.ballot, body.choice)


@router.get("/comparisons/{comparison}/agreement")
def agreement(studio: Here, comparison: str) -> Agreement:
    return studio.ratings.agreement(comparison)


@router.get("/leaderboard")
def leaderboard(
    studio: Here, comparison: Annotated[list[str] | None, Query()] = None, human_only: bool = False, data: str | None = None
) -> Leaderboard:
    """Over the comparisons named, those on the rows of dataset `data`, or all."""
    return studio.ratings.leaderboard(comparison or [], human_only=human_only, with_facts=True, data=data)


@router.post("/preferences", status_code=201)
def preferences(studio: Here, body: NewPreferences) -> Dataset:
    return studio.preferences.make(body.comparisons, name=body.name, min_margin=body.min_margin, source=body.source)


@router.get("/comparisons/{comparison}/worst")
def worst(studio: Here, comparison: str, contestant: str, limit: Annotated[int, Query(ge=1, le=100)] = 10) -> list[LostPrompt]:
    """Where a contestant lost, each with a proposal for a better answer."""
    return studio.preferences.worst(comparison, contestant, limit)


@router.post("/comparisons/{comparison}/corrections", status_code=201)
def correct(studio: Here, comparison: str, body: Corrections) -> Dataset:
    """A dataset of prompts of the comparison with better answers."""
    return studio.preferences.correct(comparison, body.answers, name=body.name)
