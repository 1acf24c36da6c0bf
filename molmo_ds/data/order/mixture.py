"""Rates at which the sources of a mixture are drawn."""

import numpy as np

from molmo_ds import rules
from molmo_ds.config import DataConfig, SourceConfig


def sample_rates(data: DataConfig, sizes: dict[str, int]) -> dict[str, float]:
    """Share of the samples that each source gives, sorted by name; the shares sum to 1.

    `sizes`: samples per source. A group's rate (`group_rates`; none = the same for all) is divided among its
    sources by their `rate`, or where none has one by the square root of their size times their `sampling_rate`.
    Raises ValueError for unknown groups, rates that are all 0, groups where only some sources have a rate, and a source
    without samples that is to be drawn.
    Source: allenai/molmo 793fa38, scripts/train_multitask_model.py (square root), allenai/molmo2 f3cb108 (shares of a
    size, sampling_rate). Both read a size of exactly 1 otherwise: the first as one sample, as here.
    """
    if not data.sources:
        raise ValueError("There is no data set; give data.sources.<name>.path.")
    names = sorted(data.sources)
    groups = sorted({data.sources[name].group for name in names})
    rules.refuse(rules.rates(data.sources, data.group_rates, "data."))
    for name in names:
        source = data.sources[name]
        unused = source.rate == 0 or data.group_rates.get(source.group) == 0
        if not sizes[name] and not unused:
            raise ValueError(
                f"Data set '{name}' has no samples; make its shards again, or leave it out: data.sources.{name}=null."
            )
    weights: dict[str, float] = {}
    for group in groups:
        members = [name for name in names if data.sources[name].group == group]
        given = [data.sources[name].rate for name in members]
        if None not in given:
            raw = np.array(given, float)
        else:
            sources = [data.sources[name] for name in members]
            counted = [counted_size(source, sizes[name]) for source, name in zip(sources, members)]
            raw = np.sqrt(counted) * [source.sampling_rate for source in sources]
        if not raw.sum():  # nothing of it is drawn
            weights |= dict.fromkeys(members, 0.0)
            continue
        group_rate = data.group_rates.get(group, 1.0) if data.group_rates else 1.0
        weights |= dict(zip(members, group_rate * raw / raw.sum()))
    total = sum(weights.values())
    return {name: float(weights[name] / total) for name in names}


def counted_size(source: SourceConfig, samples: int) -> float:
    """Samples that the square-root rule counts: the source's own, those of `size`, or a share below 1 of its own."""
    if source.size is None:
        return samples
    return source.size * samples if source.size < 1 else source.size
