"""The kinds of parallelism, a part each; a strategy is a list of them."""

from typing import Any

from molmo_ds.config import RunConfig
from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.parallel.expert import Experts
from molmo_ds.engine.parallel.nvme import Nvme
from molmo_ds.engine.parallel.part import Part
from molmo_ds.engine.parallel.sequence import Sequence
from molmo_ds.engine.parallel.tensor import Tensors
from molmo_ds.engine.parallel.zero import Zero
from molmo_ds.engine.strategy import Strategy


def parts(
    strategy: Strategy, config: RunConfig, world: World, grid: Grid, ds: dict[str, Any]
) -> list[Part]:
    """Those of a strategy, in the order in which they change the network; see Part."""
    kinds: list[type[Part]] = [Zero]
    if "nvme" in strategy.zero.devices:
        kinds.append(Nvme)
    if strategy.sequence > 1:
        kinds.append(Sequence)
    if strategy.experts > 1:
        kinds.append(Experts)
    if strategy.tensor > 1:
        kinds.append(Tensors)
    return [kind(strategy, config, world, grid, ds) for kind in kinds]


def grid_of(strategy: Strategy, world: World, topology: Any = None) -> Grid:
    """The map of a strategy's ranks, with its groups; all ranks make the same call.

    Args:
        topology: DeepSpeed's map of a pipeline's ranks.
    """
    made = [] if topology is None else [topology.get_data_parallel_group()]
    if strategy.tensor > 1:
        made += deepspeed_0_19.tensor_groups(strategy.tensor)
    grid = Grid(strategy.axes(world.size), world.rank, made)
    grid.complete()
    return grid
