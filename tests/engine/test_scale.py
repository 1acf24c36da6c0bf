"""The counts of stand-in ranks are those of real ones, and they keep the budgets of a large run."""

from pathlib import Path

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.hub import load
from molmo_ds.model.init import initial_parameter
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.testing.scale import measures
from molmo_ds.testing.scale.counting import Counts, counted
from molmo_ds.testing.scale.ranks import Network
from molmo_ds.weights.first_weights import begun_from

Pair = tuple[int, int]  # opens, bytes


def run_config(folder: Path, ranks: int, stage: int = 3) -> RunConfig:
    """ZeRO from a folder of weights."""
    return synthetic.adamw(
        strategy=f"ds_configs/zero{stage}.json",
        global_batch=4,
        micro_batch=4 // ranks,
        init_from=str(folder / "weights"),
    )


def pair(counts: Counts) -> Pair:
    return counts.opens, counts.bytes


def real(world: World, folder: Path, saved: Path) -> tuple[list[tuple], list[Pair]]:
    """A rank's pieces; what it reads in a start from weights, and in going on from another number of ranks."""
    config = run_config(folder, world.size)
    with counted(folder) as begun:
        engine = build_engine(config, world)
    pieces = [(piece.name, piece.start, piece.size) for piece in engine.fragments()]
    engine.train_step(synthetic.micro_batches(config, 1, world.rank, world.size))
    engine.save(str(folder / f"run-{world.size}"), {})
    engine.close()
    with counted(folder) as resumed:
        assert engine.load(str(saved)) is not None
    with counted(folder) as whole:
        build_engine(run_config(folder, world.size, stage=0), world)
    return pieces, [pair(begun), pair(resumed), pair(whole)]


def simulated(folder: Path, saved: Path, rank: int, size: int) -> tuple[list[tuple], list[Pair]]:
    """The same of a stand-in."""
    network = Network.of(run_config(folder, size))
    pieces = [(piece.name, piece.start, piece.size) for piece in network.pieces(3, rank, size)]
    path = next(saved.glob("step-*"))
    with counted(folder) as begun:
        source = begun_from(network.config)
    with counted(folder) as looked:
        found = measures.opened(path)
    with counted(folder) as started:
        measures.start(network, source, 3, rank, size)
    with counted(folder) as resumed:
        measures.resume(network, found, 3, rank, size)
    again = begun_from(network.config)  # with no file open
    with counted(folder) as whole:
        measures.start(network, again, 0, rank, size)
    if rank == 0:
        started, resumed, whole = started + begun, resumed + looked, whole + begun
    return pieces, [pair(started), pair(resumed), pair(whole)]


def test_stand_ins_count_what_real_ranks_do(tmp_path: Path) -> None:
    config = run_config(tmp_path, 1)
    shapes = Network.of(config).shapes
    state = ((name, initial_parameter(config.model, name, s, 1)) for name, s in shapes.items())
    load.write_weights(tmp_path / "weights", config.model, state, None, len(shapes))
    for size, before in ((4, 4), (1, 4), (2, 1)):
        saved = tmp_path / f"run-{before}"
        seen = run_ranks(real, size, tmp_path, saved)
        assert seen == [simulated(tmp_path, saved, rank, size) for rank in range(size)]
