"""ZeRO-3's optimizer state and weights on NVMe: the place and the op they need, and one sub-group in memory at a time.

DeepSpeed swaps what has 1 MiB or more on a rank: sub-groups of the optimizer's state (fp32 weights and moments; cut by
sub_group_size) and single weights. Gradients stay in the host's memory, where ZeRO-3 collects them when it offloads.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from molmo_ds.engine import deepspeed_0_19
from molmo_ds.engine.launch import World

Named = Iterable[tuple[str, nn.Parameter]]


def prepare(ds: dict[str, Any], path: str, out: str, world: World) -> Path | None:
    """Give this rank a folder of its own below each nvme_path in `ds`, and build DeepSpeed's op; all ranks call alike.

    Args:
        path: the strategy file, for complaints.
        out: the run's folder. A run that starts again writes over its old files, and no other run does.

    Returns:
        A folder for copies that shall not fill the memory; None if nothing lies on NVMe.

    Raises ValueError on every rank if one of them cannot write to its folder or has no libaio to build the op with.
    """
    zero = ds["zero_optimization"]
    blocks = [zero.get(key, {}) for key in ("offload_param", "offload_optimizer")]
    blocks = [block for block in blocks if block.get("device") == "nvme"]
    if not blocks:
        return None
    mine = folder_name(out, world.rank)
    failures = world.gather(next(filter(None, (_failure(block, mine) for block in blocks)), None))
    if failure := next(filter(None, failures), None):
        raise ValueError(f"{path}: {failure}.")
    return Path(blocks[-1]["nvme_path"])


def folder_name(out: str, rank: int) -> str:
    """What a rank of the run that writes into `out` calls its folder on NVMe."""
    return f"molmo_ds-{hashlib.sha256(os.path.abspath(out).encode()).hexdigest()[:8]}-{rank}"


def _failure(block: dict[str, Any], mine: str) -> str | None:
    place = block.get("nvme_path")
    if place is None:
        return "an offload to NVMe has no nvme_path; write the folder where the NVMe device is mounted"
    folder = Path(place) / mine
    try:
        if not Path(place).is_dir():
            return f"nvme_path={place} is not there; create that folder or name one on an NVMe device"
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
    except Exception as error:  # RuntimeError, CalledProcessError, OSError: whatever a compiler does
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        return f"DeepSpeed's op for NVMe cannot be built ({reason[0]}); install libaio-dev, g++ and ninja-build"
    return None


def parts(named: Named, engine: Any, changed: bool) -> Iterator[tuple[Named, AbstractContextManager]]:
    """The parameters, together with the context inside which this rank's pieces of them are in memory.

    All in one part, unless the strategy keeps something on NVMe: then by sub-group, and frozen ones one by one.

    Args:
        engine: what deepspeed.initialize returned.
        changed: whether the pieces are written to, and shall be written back.
    """
    zero = engine.optimizer
    if not deepspeed_0_19.uses_nvme(zero):
        yield named, nullcontext()
        return
    deepspeed_0_19.settle(zero)
    group_of = deepspeed_0_19.sub_group_of(zero)
    together: dict[Any, list] = {}
    for name, parameter in named:
        together.setdefault(group_of.get(id(parameter), name), []).append((name, parameter))
    for key, part in together.items():
        if isinstance(key, int):
            yield part, deepspeed_0_19.sub_group(zero, key, changed)
        else:
            yield part, deepspeed_0_19.frozen_weight(part[0][1], changed)


def buffer(tensor: Tensor, folder: Path | None) -> Tensor:
    """Host memory for a copy; or, with a folder, a file without a name there, which the kernel pages in and out."""
    if folder is None:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    descriptor, path = tempfile.mkstemp(dir=folder)
    os.close(descriptor)
    made = torch.from_file(path, shared=True, size=tensor.numel(), dtype=tensor.dtype)
    os.unlink(path)
    return made.view(tensor.shape)
