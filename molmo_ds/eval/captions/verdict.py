"""The calls about one picture, and what became of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from molmo_ds.eval.captions import prompts
from molmo_ds.eval.captions.inputs import Task
from molmo_ds.eval.captions.judge import Judge, Lost
from molmo_ds.eval.captions.prompts import Messages
from molmo_ds.eval.captions.statements import (
    CONSISTENT,
    STATED,
    Unreadable,
    read_claims,
    read_repeating,
    verdicts,
)

EXACT: dict[str, Any] = {"temperature": 0}  # of every call but repetition, as in the reference
T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """A call that gave nothing to score."""

    call: str  # recall, claims, consistency or repetition
    kind: str  # refused, too long, no reply, not cached or unreadable
    reason: str


@dataclass
class Verdict:
    """One caption judged; what is None was not judged, and `failures` says why.

    `replies` holds what the judge said, call by call, for the reading of the reference.
    """

    task: Task
    stated: list[bool] | None = None  # of each reference statement, whether the caption says it
    claims: list[str] | None = None
    consistent: list[bool] | None = None  # of each claim
    repeating: bool | None = None
    replies: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)


async def judge_caption(judge: Judge, task: Task, repetition: bool, again: bool = False) -> Verdict:
    """Every call about one caption, one after the other; with `again` a call without use is asked once more.

    An empty caption is not sent: it states nothing, makes no claim and repeats nothing.
    """
    verdict = Verdict(task)
    reference = task.reference
    if not task.caption:
        verdict.stated = [False] * len(reference.statements)
        verdict.claims = []
        verdict.consistent = []
        verdict.repeating = False if repetition else None
        return verdict
    asked = _Asked(judge, verdict, again)
    messages = prompts.recall(reference.statements, task.caption)
    verdict.stated = await asked.read(
        "recall", messages, EXACT, lambda reply: verdicts(reply, len(reference.statements), STATED)
    )
    verdict.claims = await asked.read("claims", prompts.claims(task.caption), EXACT, read_claims)
    if verdict.claims is not None:
        count = len(verdict.claims)
        messages = prompts.consistency(reference.transcripts, verdict.claims)
        verdict.consistent = await asked.read(
            "consistency", messages, EXACT, lambda reply: verdicts(reply, count, CONSISTENT)
        )
    if repetition:
        verdict.repeating = await asked.read(
            "repetition", prompts.repetition(task.caption), {}, read_repeating
        )
    return verdict


@dataclass(frozen=True)
class _Asked:
    judge: Judge
    verdict: Verdict
    again: bool

    async def read(
        self, call: str, messages: Messages, options: dict[str, Any], parse: Callable[[str], T]
    ) -> T | None:
        """What `parse` makes of the reply; where there is none to read, None and one failure more."""
        failure = None
        for fresh in (False, True) if self.again else (False,):
            try:
                reply = await self.judge.ask(messages, options, fresh)
                self.verdict.replies[call] = reply
                return parse(reply)
            except Lost as error:
                failure = Failure(call, error.kind, error.reason)
            except Unreadable as error:
                failure = Failure(call, "unreadable", str(error))
        self.verdict.failures.append(failure)
        return None
