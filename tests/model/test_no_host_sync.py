"""A step on a GPU reads nothing back: run on the meta device, which cannot be read, with the GPU's own versions.

Triton's launches and FlexAttention are left out; what is around them runs, also inside our operators. tests/ops/
test_gpu.py asks the same of a real GPU.
"""

import contextlib
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from molmo_ds.batch import Sample, windows_of
from molmo_ds.engine import loss_scale, optim
from molmo_ds.engine.strategy import Limits
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.replica import Replica
from molmo_ds.infer.schedule import Row
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import dispatch
from molmo_ds.ops.tree_attention import flex
from molmo_ds.ops.weighted_cross_entropy import CHUNK_ELEMENTS
from molmo_ds.testing import synthetic
from molmo_ds.testing.text_sample import text_sample

aten = torch.ops.aten
DEVICE = torch.device("meta")


class Unread(TorchDispatchMode):
    """Looks inside our operators, and refuses what the meta device forgives: writing where a mask is true, and copies
    from the CPU that are not `non_blocking`."""

    def __init__(self) -> None:
        super().__init__()
        self.ours: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if function.namespace == "molmo_ds":
            self.ours.add(function._opname)
            with self:
                return OPDEFS[f"molmo_ds::{function._opname}"]._init_fn(*args, **(kwargs or {}))
        out = function(*args, **(kwargs or {}))
        kind = function.overloadpacket
        if kind in (aten.index, aten.index_put, aten.index_put_):
            assert all(x is None or x.dtype != torch.bool for x in args[1]), "a mask as an index"
        elif kind is aten._to_copy and args[0].device != out.device:
            assert (kwargs or {}).get("non_blocking"), "a copy that waits"
        elif kind is aten.copy_ and args[0].device != args[1].device:
            assert args[2:] == (True,), "a copy that waits"
        return out


class Unmade(TorchFunctionMode):
    """Refuses tensors made from numbers of the CPU, which no dispatcher sees."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        if function in (
            torch.tensor,
            torch.as_tensor,
            torch.asarray,
            torch.from_numpy,
            Tensor.new_tensor,
        ):
            assert out.device != DEVICE, "a tensor made from numbers of the CPU"
        return out


class Launch:
    """A Triton kernel that does nothing."""

    def __getitem__(self, grid: tuple) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def stand_in(
    q: Tensor, k: Tensor, v: Tensor, block_mask: object, scale: float, enable_gqa: bool
) -> Tensor:
    """FlexAttention, which knows no meta device."""
    assert block_mask is not None
    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=enable_gqa)


@pytest.fixture(params=["torch", "triton"])
def like_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    triton = pytest.importorskip("triton", reason="Triton is not installed")
    kernels = [
        (module, name)
        for path, module in sys.modules.items()
        if path.startswith("molmo_ds.ops.")
        for name, value in vars(module).items()
        if isinstance(value, triton.JITFunction)
    ]
    assert len(kernels) > 8
    for module, name in kernels:
        monkeypatch.setattr(module, name, Launch())
    monkeypatch.setattr(flex, "flex_attention", stand_in)
    # autocast knows no meta device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *device: False)
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **more: contextlib.nullcontext())
    monkeypatch.setitem(CHUNK_ELEMENTS, "meta", 2**10)
    with dispatch.use(request.param):
        yield request.param


EXPERTS = replace(
    synthetic.MODEL.text,
    model_type="olmoe",
    num_experts=4,
    num_experts_per_tok=2,
    intermediate_size=16,
)
DROPS = replace(synthetic.MODEL.text, response_residual_dropout=0.1, embedding_dropout=0.1)


@pytest.mark.parametrize(
    "text", [synthetic.MODEL.text, EXPERTS, DROPS], ids=["dense", "experts", "dropout"]
)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_step_reads_nothing(like_a_gpu: str, text: Any, checkpointing: str) -> None:
    config = synthetic.config(model=replace(synthetic.MODEL, text=text))
    with DEVICE:
        model = Molmo(config.model, checkpointing=checkpointing).bfloat16().train()
    # with a picture, with another, nothing learnt
    batches = [synthetic.sequence(0, lane) for lane in (0, 1, 5)]
    groups = optim.parameter_groups(model, config.optim)
    with Unmade(), Unread() as unread:
        factor, _ = loss_scale.scale(batches, 1, None, DEVICE, config.model)
        for batch in batches:
            ce, z, _ = model(batch.to(DEVICE).weighted(factor))
            (ce + z).backward()
        pieces = {
            group["component"]: [p.grad for p in group["params"] if p.grad is not None]
            for group in groups
        }
        optim.clip(pieces, lambda squares: None, 1.0)
    assert all(pieces[part] for part in optim.COMPONENTS)
    kernels = {"splice", "gather_patches", "pool_patches", "normalise_patches"}
    backward = {"splice_backward", "gather_patches_backward", "pool_patches_backward"}
    assert unread.ours == {"weighted_cross_entropy"} | (
        kernels | backward if like_a_gpu == "triton" else set()
    )


class Alone(TorchDispatchMode):
    """Refuses all copies between devices: a graph would replay them from memory that is something else by then."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        tensors = [x for x in (*args, out) if isinstance(x, Tensor)]
        assert all(x.device == DEVICE for x in tensors), (
            f"{function} in a capture leaves the device"
        )
        return out


class Captured:
    """A CUDA graph that is run again rather than replayed."""

    def __init__(self, work: Callable[[], Tensor]) -> None:
        self.work = work

    def replay(self) -> None:
        """The recorded work, which may wait for nothing."""
        with Alone():
            self.work()


def capture(work: Callable[[], Tensor]) -> tuple[Captured, Tensor]:
    with Alone():
        return Captured(work), work()


@pytest.mark.parametrize("text", [synthetic.MODEL.text, EXPERTS], ids=["dense", "experts"])
@pytest.mark.parametrize("captures", [None, capture], ids=["eager", "captured"])
def test_an_answers_step_reads_its_tokens_and_nothing_else(
    like_a_gpu: str, text: Any, captures: Callable | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DEVICE:
        model = Molmo(replace(synthetic.MODEL, text=text)).bfloat16().eval()
    replica = Replica.of(
        model, 5, Limits(slots=4, slot_tokens=64, prefill_tokens=30), capture=captures
    )
    reads = []

    def read(rows: list[Row], told: Tensor) -> list:
        reads.append(told.shape[0])
        replica.schedule.take(rows, [5 * (row.name == "1") for row in rows])  # one ends at once
        return []

    monkeypatch.setattr(replica, "_pieces", read)
    steps = 0
    with Unmade(), Unread():
        for name in range(6):
            options = Options(
                max_new_tokens=3 + name % 2, temperature=name % 3 / 2, logprobs=name % 2
            )
            replica.admit([Question(name=str(name), prompt=sample_of(name), options=options)])
        while replica.busy:
            replica.step()
            steps += 1
    assert len(reads) == steps > 6 and max(reads) == 4 and replica.row_steps < 4 * steps
    # 1, 2 and 4 rows
    assert 1 < len(replica.decode[0].graphs) <= 3 if captures else not replica.decode[0].graphs


@pytest.mark.parametrize(
    "work", [lambda: torch.ones(3).to(DEVICE, non_blocking=True), lambda: torch.ones(3)]
)
def test_what_a_capture_cannot_hold_is_seen(work: Callable[[], Tensor]) -> None:
    with pytest.raises(AssertionError, match="leaves the device"):
        capture(work)


def sample_of(number: int) -> Sample:
    """Twelve words after a picture of four tokens; the first has none."""
    crops = min(number, 1)
    ids = torch.arange(12)
    return replace(
        text_sample(ids),
        branch_ids=(ids > 4).int(),
        images=torch.zeros(crops, 28, 28, 3, dtype=torch.uint8),
        image_masks=torch.ones(crops, 16),
        windows=windows_of(crops, 4, 2),
        image_positions=torch.arange(1, 1 + 4 * crops),
    )


WAITS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "branch": lambda x: 1 if x.sum() > 0 else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 0),
    "mask": lambda x: x[x > 0],
    "write by mask": lambda x: x.__setitem__(x > 0, x[:1]),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: x.unique(),
    "unique_consecutive": lambda x: x.unique_consecutive(),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "equal": lambda x: torch.equal(x, x),
    "bincount": lambda x: x.long().bincount(),
    "from numbers": lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=DEVICE),
    "from the CPU": lambda x: x * torch.ones(3).to(DEVICE),
    "into it": lambda x: x.copy_(torch.ones(3)),
}


@pytest.mark.parametrize("wait", WAITS)
def test_what_waits_is_seen(wait: str) -> None:
    x = torch.ones(3, device=DEVICE)
    with Unmade(), Unread(), pytest.raises((AssertionError, NotImplementedError, RuntimeError)):
        WAITS[wait](x)
