"""Epochs and steps: the steps of a number of passes, and the visits of the samples of each source."""

import logging
from dataclasses import replace

from molmo_ds import rules
from molmo_ds.config import RunConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order.lanes import Lane
from molmo_ds.data.order.loader import Mixture

log = logging.getLogger("molmo_ds")
LOOKED_AT = 64  # sequences of a packed stream whose samples are counted


def steps_of(epochs: float, samples: int, global_batch: int) -> int:
    """Steps of `epochs` passes over `samples`, one sample a sequence.

    The reference's rounding: (epochs n + epochs (B - 1)) / B rounded down, which is not epochs x ceil(n / B). Source:
    allenai/molmo 793fa38, scripts/train_captioner.py.
    """
    return int(epochs * (samples + global_batch - 1) // global_batch)


def in_steps(config: RunConfig) -> RunConfig:
    """The configuration with max_steps instead of epochs, by the samples that its shards hold.

    Where sequences are packed they hold several samples: their mean over the first sequences of the first lane is
    taken, so that the number of passes is an estimate, which is said. Raises ValueError for shards that cannot be
    opened, and for settings that do not suit the number of steps.
    """
    if config.epochs is None:
        return config
    mixture = Mixture.open(config)
    samples = sum(map(len, mixture.sets))
    each = samples_per_sequence(mixture)
    steps = max(1, steps_of(config.epochs / each, samples, config.global_batch))
    estimate = f" at {each:.2f} samples a sequence, an estimate," if each != 1 else ""
    log.info("epochs=%g of %d samples%s are max_steps=%d", config.epochs, samples, estimate, steps)
    made = replace(config, epochs=None, max_steps=steps)
    rules.refuse(rules.run(made))
    return made


def samples_per_sequence(mixture: Mixture) -> float:
    """Mean number of samples of the first sequences of lane 0; 1 where sequences are padded."""
    if mixture.budget.pool_size == 1:
        return 1.0

    def size(source: int, sample: int, epoch: int) -> tuple[int, int] | None:
        try:
            return mixture.size(source, sample, epoch)
        except BadSample:
            return None

    lane = Lane(0, mixture.orders, mixture.rates, size, mixture.budget)
    return sum(len(lane.next()) for _ in range(LOOKED_AT)) / LOOKED_AT


def visits(mixture: Mixture, config: RunConfig) -> list[str]:
    """A line for each source: its rate, its samples, and how often the whole run visits one of them."""
    each = samples_per_sequence(mixture)
    drawn = config.max_steps * config.global_batch * each
    return [
        f"{name}: {rate:.2%} of the samples, {len(shards):,} of its own, "
        f"{rate * drawn / len(shards):.2f} visits of each"
        for name, rate, shards in zip(mixture.names, mixture.rates, mixture.sets)
    ]
