"""AI2D: questions about school-book diagrams; letters that are written on the picture come on both kinds of boxes."""

from collections.abc import Mapping
from typing import Any

from molmo_ds.eval.metrics.choice import score_diagram
from molmo_ds.eval.task import Published, Split, Task


def question(metadata: Mapping[str, Any]) -> str:
    """The data set's id; a question with letters on the picture is there twice."""
    kind = (
        ("-opaque", "-transparent")[metadata["has_transparent_box"]]
        if metadata["abc_label"]
        else ""
    )
    return f"{metadata['example_id']}{kind}"


TASKS = [
    Task(
        name="ai2_diagram_v2_mix_transparent",
        aliases=("ai2_diagram", "ai2d"),
        benchmark="AI2D",
        styles=("ai2_diagram", "ai2_diagram_no_letter"),
        splits={
            "validation": Split(shards="ai2_diagram_v2_mix_transparent-validation"),
            "test": Split(shards="ai2_diagram_v2_mix_transparent-test"),
        },
        max_new_tokens=12,
        molmo2_new_tokens=32,
        crops=36,
        score=score_diagram,
        headline="mc_ai2d_transparent",
        question=question,
        published=Published(figures=(86.4, 90.7, 93.2, 96.3), split="test"),
    )
]
