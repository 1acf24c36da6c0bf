"""ZeRO 0 to 3: every rank holds the network; under ZeRO-3 shards, cut as soon as a parameter exists."""

from contextlib import AbstractContextManager

import deepspeed

from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.grid import COPIES
from molmo_ds.engine.parallel.part import Part
from molmo_ds.model.connector import GatedMLP
from molmo_ds.model.decoder import Attention, DecoderLayer
from molmo_ds.model.vision import VisionAttention, VisionLayer, VisionMLP

# modules that compute by calling others, and read no weight of these themselves
CALLERS = (Attention, DecoderLayer, GatedMLP, VisionAttention, VisionLayer, VisionMLP)


class Zero(Part):
    """The part that every strategy has."""

    def inside(self) -> AbstractContextManager:
        """On this rank's device, whole or cut."""
        if self.strategy.stage < 3:
            return self.world.device
        deepspeed_0_19.hook_fewer(CALLERS)
        return deepspeed.zero.Init(
            config_dict_or_path=self.ds, data_parallel_group=self.grid.group(*COPIES)
        )
