"""ZeRO 0 to 3: every rank holds the network; under ZeRO-3 shards, cut as soon as a parameter exists."""

from contextlib import AbstractContextManager

import deepspeed

from molmo_ds.engine.grid import COPIES
from molmo_ds.engine.parallel.part import Part


class Zero(Part):
    """The part that every strategy has."""

    def inside(self) -> AbstractContextManager:
        """On this rank's device, whole or cut."""
        if self.strategy.stage < 3:
            return self.world.device
        return deepspeed.zero.Init(
            config_dict_or_path=self.ds, data_parallel_group=self.grid.group(*COPIES)
        )
