"""Counts a step of a model of real size without memory: kernels launched, bytes they move, operations of matrices.

Tensors are fake ones of the twin's device, so what is chosen for a GPU is what is counted. An operator is one kernel,
apart from ours, whose own number of kernels is in OURS, and those over lists of tensors. A view is none. Compilation
makes fewer.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, windows_of
from molmo_ds.config import RunConfig
from molmo_ds.engine import optim
from molmo_ds.model.molmo import Molmo
from molmo_ds.ops.tree_attention import flex

CHUNKS = (
    320  # of 65,536 elements that a kernel over a list takes, see torch/csrc's MultiTensorApply.cuh
)
TENSORS = 110  # of a list that it takes
OURS = {
    "splice": 7,
    "splice_backward": 6,
    "gather_patches": 5,
    "gather_patches_backward": 7,
    "pool_patches": 1,
    "pool_patches_backward": 1,
    "normalise_patches": 1,
    "weighted_cross_entropy": 6,
}
MATRICES = ("mm", "addmm", "bmm", "_grouped_mm", "weighted_cross_entropy")
FLASH = "_scaled_dot_product_flash_attention"
NO_KERNEL = {
    "view", "_unsafe_view", "t", "transpose", "expand", "permute", "select", "slice", "unsqueeze", "squeeze", "detach",
    "alias", "as_strided", "split", "chunk", "unbind", "reshape", "_reshape_alias", "lift_fresh", "split_with_sizes",
    "is_same_size", "device",
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "diagonal", "unfold",
    "narrow", "set_", "view_as", "is_pinned", "_local_scalar_dense", "_record_function_enter_new",
    "_record_function_exit",
}  # fmt: skip


@dataclass(frozen=True)
class Counted:
    """One part of a step."""

    part: str
    launches: int
    pointwise: int  # bytes read and written by what is no product of matrices
    flops: int


class Kernels(TorchDispatchMode):
    """Counts launches and bytes of the operators inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.launches: Counter[str] = Counter()
        self.moved: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function._opname
        if name in NO_KERNEL:
            return out
        leaves = torch.utils._pytree.tree_leaves((args, kwargs, out))
        tensors = [x for x in leaves if torch.is_tensor(x) and x.is_cuda]
        self.moved[name] += sum(x.numel() * x.element_size() for x in tensors)
        self.launches[name] += OURS.get(name, 1) if not over_lists(name) else launches_over(args[0])
        return out

    def counted(self, part: str, flops: int) -> Counted:
        """The sums."""
        products = sum(b for name, b in self.moved.items() if name in MATRICES or FLASH in name)
        pointwise = sum(self.moved.values()) - products
        return Counted(part, sum(self.launches.values()), pointwise, flops)


def over_lists(name: str) -> bool:
    """Whether an operator takes lists of tensors, several in one kernel."""
    return name.startswith(("_foreach", "_fused"))


def launches_over(tensors: list[Tensor]) -> int:
    """Kernels for a list of tensors."""
    chunks = sum(-(-x.numel() // optim.CHUNK) for x in tensors)
    return max(-(-chunks // CHUNKS), -(-len(tensors) // TENSORS))


def flash(
    q: Tensor, k: Tensor, v: Tensor, block_mask: Any = None, scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """One kernel over the tensors of FlexAttention, which knows no fake ones outside of a compilation."""
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k = k.repeat_interleave(group, 1)
        v = v.repeat_interleave(group, 1)
    plain = torch.ops.aten._scaled_dot_product_flash_attention
    return plain(q, k, v, 0.0, True, False, scale=scale)[0]


def vision_flash(q: Tensor, k: Tensor, v: Tensor, *more: Any, **options: Any) -> Tensor:
    """F.scaled_dot_product_attention as a GPU chooses it for the ViT."""
    plain = torch.ops.aten._scaled_dot_product_flash_attention
    return plain(q, k, v, 0.0, False, False, scale=options.get("scale"))[0]


@contextmanager
def attention_counted() -> Iterator[None]:
    """Inside the block attention is one kernel."""
    before = flex._compiled, F.scaled_dot_product_attention
    flex._compiled = lambda: flash
    F.scaled_dot_product_attention = vision_flash
    try:
        yield
    finally:
        flex._compiled, F.scaled_dot_product_attention = before


def fake_batch(config: MolmoConfig, sequences: int, tokens: int, crops: int, learnt: int) -> Batch:
    """A batch of these sizes without memory."""
    side = config.vision.image_size
    grid = side // config.vision.patch_size
    windows = torch.empty_like(windows_of(crops, grid, config.connector.pooling_size))

    def per_token(dtype: torch.dtype) -> Tensor:
        return torch.empty(sequences, tokens, dtype=dtype)

    return Batch(
        input_ids=per_token(torch.int64),
        labels=per_token(torch.int64),
        loss_weights=per_token(torch.float32),
        position_ids=per_token(torch.int64),
        document_ids=per_token(torch.int32),
        branch_ids=per_token(torch.int32),
        images=torch.empty(crops, side, side, 3, dtype=torch.uint8),
        image_masks=torch.empty(crops, grid * grid),
        windows=windows,
        image_positions=torch.empty(len(windows), dtype=torch.int64),
        learnt_rows=torch.empty(learnt, dtype=torch.int64),
    )


def step(
    config: RunConfig, sequences: int, tokens: int, crops: int, learnt: int, shard: int = 1
) -> list[Counted]:
    """The parts of a step on one GPU in bf16: forward, backward, clipping, AdamW.

    Args:
        learnt: tokens that reach the loss.
        shard: ranks over which ZeRO-3 splits gradients and state, one flat buffer for each component.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), attention_counted(), torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Molmo(config.model, checkpointing=config.activation_checkpointing).train()
        finally:
            torch.set_default_dtype(torch.float32)
        frozen = optim.frozen_names(model, config.optim)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in frozen)
        groups = optim.parameter_groups(model, config.optim)
        batch = fake_batch(config.model, sequences, tokens, crops, learnt)
        out = []
        with Kernels() as kernels, FlopCounterMode(display=False) as flops:
            ce, z, _ = model(batch)
            loss = ce + z
        out.append(kernels.counted("forward", flops.get_total_flops()))
        with Kernels() as kernels, FlopCounterMode(display=False) as flops:
            loss.backward()
        out.append(kernels.counted("backward", flops.get_total_flops()))
        return out + update(groups, config, shard)


def update(groups: list[dict], config: RunConfig, shard: int) -> list[Counted]:
    """Clipping and AdamW of this rank's share: of each parameter a gradient in fp32, or slices of one flat buffer."""
    masters = []
    gradients: dict[str, list[Tensor]] = {}
    for group in groups:
        sizes = [-(-p.numel() // shard) for p in group["params"]]
        flat = torch.nn.Parameter(torch.empty(sum(sizes)))
        flat.grad = torch.empty(sum(sizes))
        masters.append({**group, "params": [flat]})
        pieces = flat.grad.split(sizes) if shard > 1 else [torch.empty(size) for size in sizes]
        gradients.setdefault(group["component"], []).extend(pieces)
    optimizer = optim.build_optimizer(masters, config.optim, fused=True)
    limit = config.optim.max_grad_norm
    with Kernels() as kernels:
        optim.clip(gradients, lambda squares: None, limit, groups=optimizer.param_groups)
    out = [kernels.counted("clipping", 0)]
    for group in masters:
        flat = group["params"][0]
        state = {name: torch.empty_like(flat) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[flat] = {"step": torch.ones(()), **state}
    with Kernels() as kernels:
        optimizer.step()
    out.append(kernels.counted("AdamW", 0))
    return out
