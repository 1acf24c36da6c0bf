"""Every sample of every set that a recipe reads, built once as its training would."""

from collections.abc import Mapping

from molmo_ds.config import RunConfig
from molmo_ds.data.decode import BadSample
from molmo_ds.data.order.loader import Mixture


def read_all(runs: Mapping[str, RunConfig]) -> tuple[int, int]:
    """The number of sets, and of samples of all stages: a few steps of training see a part of them only.

    Raises ValueError with the name of a sample that cannot be used, or teaches nothing.
    """
    sets = set()
    samples = 0
    for stage, run in runs.items():
        mixture = Mixture.open(run)
        idle = sorted(set(run.data.sources) - set(mixture.names))
        if idle:
            raise ValueError(f"{stage} never reads {', '.join(idle)}: their rate is 0.")
        sets |= set(mixture.names)
        for number, (name, shards) in enumerate(zip(mixture.names, mixture.sets)):
            for sample in range(len(shards)):
                where = f"{stage}: sample {sample} of {name}"
                try:
                    built = mixture.build((number, sample, 0))
                except BadSample as error:
                    raise ValueError(f"{where} cannot be used: {error}") from None
                size = mixture.size(number, sample, 0)
                if (len(built.input_ids), len(built.images)) != size:
                    raise ValueError(f"{where} has another size than its index says.")
                if not (built.loss_weights > 0).any():
                    raise ValueError(f"{where} teaches nothing: no token of it is learnt.")
                samples += 1
    return len(sets), samples
