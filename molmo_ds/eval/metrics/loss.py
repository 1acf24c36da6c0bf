"""The loss over a data set, from the sums of its batches on whatever ranks.

Source: allenai/molmo 793fa38, olmo/eval/loss_evaluator.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

NAMES = {"Loss": "total_loss", "Accuracy": "total_accuracy", "ZLoss": "total_zloss"}


def total_loss(sums: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Loss, Accuracy and ZLoss from the sums of batches on all ranks, each divided by the sum of weights."""
    weight = math.fsum(one["total_weight"] for one in sums)
    means = {}
    for name, key in NAMES.items():
        if all(key in one for one in sums):
            total = math.fsum(one[key] for one in sums)
            means[name] = total / weight
    return means
