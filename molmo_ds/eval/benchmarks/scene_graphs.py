"""GQA and TallyQA: questions made from what photographs are known to show, and counting questions of two kinds."""

from collections.abc import Mapping

from molmo_ds.eval.metrics.anls import score_exact
from molmo_ds.eval.row import Row, by_metadata
from molmo_ds.eval.task import Split, Task


def kind(row: Row) -> Mapping[str, str]:
    """TallyQA tells questions that a detector could answer from those that it could not."""
    simple = row.metadata.get("is_simple")
    return {} if simple is None else {"kind": "simple" if simple else "complex"}


TASKS = [
    Task(
        name="gqa",
        benchmark="GQA",
        styles=("gqa",),
        splits={name: Split(shards=f"gqa-{name}") for name in ("validation", "testdev")},
        max_new_tokens=12,
        score=score_exact,
        headline="em",
        categories=by_metadata("question_kind"),
    ),
    Task(
        name="tally_qa",
        benchmark="TallyQA",
        styles=("tally_qa",),
        splits={"test": Split(shards="tally_qa-test")},
        max_new_tokens=12,
        score=score_exact,
        headline="em",
        categories=kind,
    ),
]
