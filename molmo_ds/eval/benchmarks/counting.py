"""Counting: CountBenchQA, whose questions are given, and PixMo-Count, whose questions are drawn for each example."""

from molmo_ds.eval.metrics.count import per_category_average, score_count, true_count_text
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="countbench_qa",
        benchmark="CountBenchQA",
        styles=("point_count",),
        splits={"huggingface": Split(shards="count_bench_qa-test", questions=490)},
        max_new_tokens=192,
        score=score_count,
        headline="correct",
        truth=true_count_text,
        derived=per_category_average,
        published=Published(figures=(87.2, 89.0, 88.5, 91.2), split="huggingface"),
    ),
    Task(
        name="pixmo_count_counting",
        benchmark="PixMo-Count",
        styles=("point_count",),
        splits={
            "validation": Split(shards="pixmo_count_counting-validation", questions=540),
            "test": Split(shards="pixmo_count_counting-test", questions=540),
        },
        max_new_tokens=192,
        score=score_count,
        headline="correct",
        truth=true_count_text,
        derived=per_category_average,
        published=Published(figures=(79.6, 83.3, 84.8, 85.2), split="test"),
    ),
]
