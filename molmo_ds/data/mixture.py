"""How often each source of a mixture is drawn."""

import numpy as np

from molmo_ds.config import DataConfig


def sample_rates(data: DataConfig, sizes: dict[str, int]) -> dict[str, float]:
    """Share of the samples that each source gives, sorted by name; the shares sum to 1.

    `sizes`: samples per source. A group's rate (`group_rates`; none given = all groups alike) is divided among its
    sources by their `rate`, or where none has one by the square root of their size (the reference's rule). Raises
    ValueError for unknown groups, negative rates, and groups where only some sources have a rate.
    """
    if not data.sources:
        raise ValueError("There is no data set; give data.sources.<name>.path.")
    names = sorted(data.sources)
    groups = sorted({data.sources[name].group for name in names})
    if data.group_rates and set(data.group_rates) != set(groups):
        raise ValueError(f"data.group_rates names {sorted(data.group_rates)}, but the sources' groups are {groups}.")
    weights: dict[str, float] = {}
    for group in groups:
        members = [name for name in names if data.sources[name].group == group]
        given = [data.sources[name].rate for name in members]
        if None not in given:
            raw = np.array(given, float)
        elif given == [None] * len(given):
            raw = np.sqrt([data.sources[name].size or sizes[name] for name in members])
        else:
            raise ValueError(f"Either all sources of group '{group}' have a rate or none: {', '.join(members)}.")
        group_rate = data.group_rates.get(group, 1.0) if data.group_rates else 1.0
        if raw.min() < 0 or raw.sum() <= 0 or group_rate < 0:
            raise ValueError(f"The rates of group '{group}' must be at least 0, and one above 0.")
        weights |= dict(zip(members, group_rate * raw / raw.sum()))
    total = sum(weights.values())
    if total <= 0:
        raise ValueError("All group_rates are 0; give one group a rate above 0.")
    return {name: float(weights[name] / total) for name in names}
