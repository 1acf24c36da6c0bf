"""A run that is another run after every step, with only the files of its checkpoints between them."""

from torch import Tensor

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import fresh_groups


def hand_on(
    world: World, folder: str, configs: list[RunConfig]
) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of one step under each configuration, and the (merged) weights after the last."""
    losses = []
    for step, config in enumerate(configs, 1):
        fresh_groups()
        engine = build_engine(config, world)
        assert (engine.load(folder) is None) == (step == 1) and engine.step == step - 1
        batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
        losses.append(engine.train_step(batches)["loss"])
        engine.save(folder, {})
        engine.close()
    return losses, dict(engine.full_state())
