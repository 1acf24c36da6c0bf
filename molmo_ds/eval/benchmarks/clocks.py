"""Clocks: PixMo-Clocks' drawn watch faces, and the clocks in photographs of "It's About Time" (ClockBench)."""

from functools import partial

from molmo_ds.eval.metrics.clocks import score_clock, true_time
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="pixmo_clocks",
        benchmark="PixMo-Clocks",
        styles=("clocks",),
        splits={"validation": Split(shards="pixmo_clocks-validation")},
        max_new_tokens=12,
        score=score_clock,
        headline="overall_close",
        truth=true_time,
    ),
    Task(
        name="clock_bench",
        benchmark="ClockBench",
        styles=("clocks",),
        splits={
            name: Split(shards=f"clock_bench-{name}") for name in ("coco", "openimg", "movies")
        },
        max_new_tokens=12,
        score=partial(score_clock, benchmark=True),
        headline="overall_close",
        truth=true_time,
        published=Published(
            figures=(65.8, 64.2, 68.2, 65.6), split="coco, openimg and movies together"
        ),
    ),
]
