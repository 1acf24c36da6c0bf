"""One kind of parallelism, as an addition to an engine, which composes the parts of a strategy."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch
from molmo_ds.config import RunConfig
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import Strategy


class Part:
    """Adds nothing. A kind overrides what it needs; the order in which an engine calls is that of the functions here.

    Args:
        grid: the map of ranks; a kind whose groups DeepSpeed makes late adds its axes in `settle`.
        ds: DeepSpeed's configuration, which a kind may still change before DeepSpeed's engine is built.
    """

    # the optimizer must be built after DeepSpeed has replaced layers, in groups cut by `marks`
    regroups = False
    # DeepSpeed must not see the last backward pass as such; `before_step` makes up for it
    defers = False
    scratch: Path | None = None  # a folder for copies that must not fill the host's memory

    def __init__(
        self, strategy: Strategy, config: RunConfig, world: World, grid: Grid, ds: dict[str, Any]
    ) -> None:
        self.strategy = strategy
        self.config = config
        self.world = world
        self.grid = grid
        self.ds = ds

    def shape(self, model: MolmoConfig) -> MolmoConfig:
        """The network of which this rank holds all."""
        return model

    def inside(self) -> AbstractContextManager:
        """The context in which the network is built."""
        return nullcontext()

    def transform(self, model: nn.Module) -> None:
        """Change the network before anything else sees it."""

    def settle(self, engine: Any, model: nn.Module) -> None:
        """Adjust what deepspeed.initialize has made."""

    def marks(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """Keys of the optimizer's group of a parameter; "copies" are axes of ranks with the same gradient."""
        return {}

    def local(self, batch: Batch) -> Batch:
        """This rank's share of a batch."""
        return batch

    def before_step(self, engine: Any) -> None:
        """Act between the clipping and the step."""

    def rename(self, piece: Fragment) -> Fragment:
        """A piece under the name and at the place that it has in the network of one process, and who holds the same."""
        return piece
