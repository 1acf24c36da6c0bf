"""ZeRO-3's optimizer state and weights on NVMe: the folder and the op that they need, and their last gradients.

DeepSpeed swaps what has 1 MiB or more on a rank: sub-groups of the optimizer's state (fp32 weights and moments; cut by
sub_group_size) and single weights. Gradients stay in the host's memory, where ZeRO-3 collects them when it offloads.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

from molmo_ds.config import RunConfig
from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.grid import Grid
from molmo_ds.engine.launch import World
from molmo_ds.engine.parallel.part import Part
from molmo_ds.engine.strategy import Strategy
from molmo_ds.files import is_remote


class Nvme(Part):
    """Swaps one sub-group after the other through the step, whose gradients were clipped in memory."""

    defers = True

    def __init__(
        self, strategy: Strategy, config: RunConfig, world: World, grid: Grid, ds: dict[str, Any]
    ) -> None:
        super().__init__(strategy, config, world, grid, ds)
        self.scratch = prepare(ds, strategy.path, config.out, world)

    def before_step(self, engine: Any) -> None:
        """Give the clipped gradients to the step."""
        deepspeed_0_19.hand_over(engine)


def prepare(ds: dict[str, Any], path: str, out: str, world: World) -> Path:
    """Give this rank a folder of its own below each nvme_path in `ds`, and build DeepSpeed's op; all ranks call it.

    Args:
        path: the strategy file, for complaints.
        out: the run's folder. A run that starts again writes over its old files, and no other run does.

    Returns:
        A folder for copies that must not fill the memory.

    Raises ValueError on every rank if one of them cannot write to its folder or has no libaio to build the op with.
    """
    zero = ds["zero_optimization"]
    blocks = [zero.get(key, {}) for key in ("offload_param", "offload_optimizer")]
    blocks = [block for block in blocks if block.get("device") == "nvme"]
    mine = folder_name(out, world.rank)
    failures = world.gather(next(filter(None, (_failure(block, mine) for block in blocks)), None))
    if failure := next(filter(None, failures), None):
        raise ValueError(f"{path}: {failure}.")
    return Path(blocks[-1]["nvme_path"])


def folder_name(out: str, rank: int) -> str:
    """Name of a rank's folder on NVMe, for the run that writes into `out`."""
    whole = out if is_remote(out) else os.path.abspath(out)
    return f"molmo_ds-{hashlib.sha256(whole.encode()).hexdigest()[:8]}-{rank}"


def _failure(block: dict[str, Any], mine: str) -> str | None:
    place = block.get("nvme_path")
    if place is None:
        return (
            "an offload to NVMe has no nvme_path; write the folder where the NVMe device is mounted"
        )
    folder = Path(place) / mine
    try:
        if not Path(place).is_dir():
            return (
                f"nvme_path={place} is not there; create that folder or name one on an NVMe device"
            )
        folder.mkdir(exist_ok=True)
        # as DeepSpeed opens its files, past the page cache, which not every file system can
        os.close(os.open(folder / "try", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
        os.unlink(folder / "try")
    except OSError as error:
        return f"nvme_path={place} cannot be written to directly ({error.strerror}); name a folder on an NVMe device"
    block["nvme_path"] = str(folder)
    return _build()


def _build() -> str | None:
    """Load the op, compiled at its first use (into TORCH_EXTENSIONS_DIR or ~/.cache); what is missing, or None."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    try:
        AsyncIOBuilder().load(verbose=False)
    # RuntimeError, CalledProcessError, OSError: whatever a compiler does
    except Exception as error:
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        return f"DeepSpeed's op for NVMe cannot be built ({reason[0]}); install libaio-dev, g++ and ninja-build"
    return None
