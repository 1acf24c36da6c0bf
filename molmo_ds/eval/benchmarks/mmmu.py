"""MMMU: college exams of thirty subjects; the first picture of a question only, as in the reference."""

import re
from collections.abc import Mapping

from molmo_ds.eval.metrics.mmmu import score_mmmu
from molmo_ds.eval.row import Row
from molmo_ds.eval.task import Published, Split, Task


def subject(row: Row) -> Mapping[str, str]:
    """The subject is part of a question's id, validation_Art_Theory_7."""
    found = re.fullmatch(r"[a-z]+_(\w+)_\d+", str(row.metadata.get("example_id")))
    return {"subject": found[1]} if found else {}


TASKS = [
    Task(
        name="mmmu_test",
        aliases=("mmmu",),
        benchmark="MMMU",
        styles=("a_okvqa_mc", "vqa2"),
        splits={
            "validation": Split(shards="mmmu-validation", questions=900),
            "dev": Split(shards="mmmu-dev"),
            "test": Split(shards="mmmu-test", public=False),
        },
        max_new_tokens=12,
        molmo2_new_tokens=64,
        crops=36,
        score=score_mmmu,
        headline="mmmu_score",
        categories=subject,
        published=Published(figures=(34.9, 39.3, 45.3, 54.1), split="validation"),
        submission="mmmu",
    )
]
