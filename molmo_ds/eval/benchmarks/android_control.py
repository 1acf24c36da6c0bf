"""Android Control: the next action on a phone, from an instruction (ll), a goal (hl), both, or a goal with a plan."""

from collections.abc import Mapping
from typing import Any

from molmo_ds.eval.metrics.android import read_action, score_action
from molmo_ds.eval.row import Row
from molmo_ds.eval.task import Published, Split, Task

_PUBLISHED = {
    "ll": Published(figures=(None, None, None, 88.7), split="test"),
    "hl": Published(figures=(None, None, None, 69.0), split="test"),
}


def question(metadata: Mapping[str, Any]) -> str:
    """A screen of an episode."""
    return f"{metadata['episode_id']}-{metadata['step']}"


def action(row: Row) -> Mapping[str, str]:
    """The kind of the true action."""
    return {"action": read_action(row.metadata["target_action"]).kind or "other"}


TASKS = [
    Task(
        name=f"android_control_{mode}",
        benchmark=f"Android Control, {what}",
        styles=("android_control",),
        splits={
            "validation": Split(shards="android_control-validation"),
            "test": Split(shards="android_control-test"),
        },
        max_new_tokens=64 if mode == "hl_cot" else 16,
        score=score_action,
        headline="accuracy",
        where=lambda metadata, mode=mode: metadata.get("mode") == mode,
        question=question,
        truth=lambda row: row.metadata.get("target_action"),
        categories=action,
        published=_PUBLISHED.get(mode),
    )
    for mode, what in (
        ("ll", "low"),
        ("hl", "high"),
        ("hl_ll", "high and low"),
        ("hl_cot", "high with a plan"),
    )
]
