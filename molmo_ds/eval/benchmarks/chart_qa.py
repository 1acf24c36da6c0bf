"""ChartQA: questions about charts by people and by a program, scored within 5 % (relaxed), exactly, and leniently."""

from collections.abc import Mapping

from molmo_ds.eval.metrics.chart import score_chart
from molmo_ds.eval.row import Row
from molmo_ds.eval.task import Published, Split, Task


def asked_by(row: Row) -> Mapping[str, str]:
    """Who asked: the hub's human_or_machine is 0 for people."""
    human = row.metadata.get("is_human")
    return {} if human is None else {"asked by": "people" if human else "program"}


TASKS = [
    Task(
        name="chart_qa",
        aliases=("chart_qa_weighted",),
        benchmark="ChartQA",
        styles=("chart_qa",),
        splits={
            "validation": Split(shards="chart_qa-validation", questions=1920),
            "test": Split(shards="chart_qa-test", questions=2500),
        },
        max_new_tokens=12,
        crops=36,
        score=score_chart,
        headline="relaxed_correctness",
        categories=asked_by,
        published=Published(figures=(78.0, 80.4, 84.1, 87.3), split="test"),
    ),
    Task(
        name="chart_qa_exp",
        benchmark="ChartQA, explained",
        styles=("chart_qa_exp",),
        splits={
            "validation": Split(shards="chart_qa_exp-validation", questions=1920),
            "test": Split(shards="chart_qa_exp-test", questions=2500),
        },
        max_new_tokens=256,
        crops=36,
        score=score_chart,
        headline="relaxed_correctness",
        categories=asked_by,
    ),
]
