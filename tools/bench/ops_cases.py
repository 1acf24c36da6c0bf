"""What bench_ops.py times: every op at shapes of Molmo-7B-D, what it cannot avoid, and a library."""

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.ops.crops import normalise_patches
from molmo_ds.ops.experts import experts
from molmo_ds.ops.pool_patches import gather_patches, pool_patches
from molmo_ds.ops.rms_norm import rms_norm
from molmo_ds.ops.rope import rope_table, rotate
from molmo_ds.ops.splice import splice
from molmo_ds.ops.swiglu import swiglu
from molmo_ds.ops.tree_attention import attention_plan, tree_attention
from molmo_ds.ops.tree_attention.flex import reach
from molmo_ds.ops.weighted_cross_entropy import weighted_cross_entropy

LIGER, FLASH = (
    importlib.util.find_spec(name) is not None for name in ("liger_kernel", "flash_attn")
)


@dataclass(frozen=True)
class Case:
    """One op at one shape. `make(small)` gives its arguments (a leaf where a gradient is wanted) for `run`."""

    op: str
    shape: str
    make: Callable[[bool], list[Any]]
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    gigabytes: tuple[float, float]  # forward, forward and backward
    teraflops: tuple[float, float] = (0.0, 0.0)
    # none: ours is the plain version, compiled where the run asks for it
    by: tuple[str, ...] = ("triton",)
    library: tuple[str, Callable[..., Tensor]] | None = None
    # where the plain version that ops/ has is not what one would write
    plain: Callable[..., Tensor] | None = None


def leaf(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A bf16 tensor that wants a gradient, on the default device."""
    return torch.randn(size).to(dtype).requires_grad_()


def crops_case() -> Case:
    n, side = 52, 336
    pixels = n * side * side * 3
    statistics = ((0.48, 0.46, 0.41), (0.27, 0.26, 0.28))

    def make(small: bool) -> list[Any]:
        size = (2, 28, 42, 3) if small else (n, side, side, 3)
        return [torch.randint(0, 256, size, dtype=torch.uint8), *statistics, 14]

    return Case(
        "normalise_patches", f"{n}x{side}x{side}", make, normalise_patches, (pixels * 5e-9, 0)
    )


def gather_case(size: int) -> Case:
    n, patches, width, kinds = 52, 576, 1024, 2
    windows, rows = n * patches // size, n * patches

    def make(small: bool) -> list[Any]:
        n_, p, d, m = (2, 36, 20, 7) if small else (n, patches, width, windows)
        index = torch.randperm(n_ * p)[: m * size].view(m, size)
        if small:
            index[1], index[2, 1] = -1, -1
        return [
            [leaf(n_, p + 1, d), leaf(n_, p + 1, d)],
            torch.rand(n_, p, kinds),
            leaf(kinds, 2 * d),
            index,
            False,
        ]

    # layers in, features and means out; backward the other way
    moved = (2 * rows + windows) * 2 * width * 2e-9
    shape = f"{n}x{patches}x2x{width} windows of {size}"
    return Case("gather_patches", shape, make, gather_patches, (moved, 2 * moved))


def pool_case(size: int) -> Case:
    windows, heads, width = 52 * 576 // size, 16, 64

    def make(small: bool) -> list[Any]:
        m, h, d = (7, 3, 24) if small else (windows, heads, width)
        index = torch.arange(m * size).view(m, size)
        if small:
            index[1], index[2, 1] = -1, -1
        return [leaf(m, h, d), leaf(m, size, h, d), leaf(m, size, h, d), index, True]

    def library(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> Tensor:
        return F.scaled_dot_product_attention(q[:, :, None], k.transpose(1, 2), v.transpose(1, 2))[
            :, :, 0
        ]

    row = windows * heads * width * 2e-9
    # q, out, k, v; then grad, q, k, v in and three out
    moved = (2 * row + 2 * size * row, 5 * row + 6 * size * row)
    shape = f"{windows}x{heads}x{width} windows of {size}"
    return Case(
        "pool_patches",
        shape,
        make,
        pool_patches,
        moved,
        by=("triton", "cuda"),
        library=("torch SDPA", library),
    )


def splice_case() -> Case:
    tokens, width, base, extra, count = 16384, 3584, 152064, 128, 7488

    def make(small: bool) -> list[Any]:
        t, d, e, m = (66, 72, 50, 11) if small else (tokens, width, base, count)
        ids = torch.randint(0, e, (1, t))
        at = torch.randperm(t)[:m]
        ids[0, at] = e + 2
        at = torch.where(torch.arange(m) % 4 == 0, -1, at)
        table = torch.randn(e, d).bfloat16()  # frozen, as in both recipes
        return [ids, table, leaf(extra, d), leaf(m, d), at]

    row = width * 2e-9
    moved = (2 * tokens + count) * row
    return Case(
        "splice",
        f"{tokens}x{width}, {count} features",
        make,
        splice,
        (moved, moved + (tokens + 2 * count) * row),
    )


def loss_case() -> Case:
    rows, width, words = 6553, 3584, 152064  # 0.4 of 16384 tokens are learnt

    def make(small: bool) -> list[Any]:
        r, d, v = (45, 12, 97) if small else (rows, width, words)
        return [leaf(r, d), leaf(v, d), torch.randint(0, v, (r,)), torch.rand(r), 1e-4]

    def run(*args: Any) -> Tensor:
        ce, z, _ = weighted_cross_entropy(*args)
        return ce + z

    def plain(
        hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor, z_loss: float
    ) -> Tensor:
        logits = (hidden @ weight.T).float()
        z = z_loss * logits.logsumexp(-1) ** 2
        return (weights * (F.cross_entropy(logits, labels, reduction="none") + z)).sum()

    def liger(hidden: Tensor, weight: Tensor, labels: Tensor, _: Tensor, z_loss: float) -> Tensor:
        from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

        # it knows no weights of tokens, and returns the loss first
        return LigerFusedLinearCrossEntropyFunction.apply(
            hidden, weight, labels, None, None, -100, z_loss, 0.0, "sum"
        )[0]

    product = 2 * rows * width * words * 1e-12
    logits = rows * words * 2e-9
    shape, library = f"{rows} rows, {width}x{words}", ("Liger", liger) if LIGER else None
    floors = (2 * logits, 4 * logits), (product, 3 * product)
    return Case("weighted_cross_entropy", shape, make, run, *floors, library=library, plain=plain)


def pointwise_cases() -> Iterator[Case]:
    tokens, width, inner, heads = 16384, 3584, 18944, 28

    def norm(small: bool) -> list[Any]:
        return [leaf(5, 72), leaf(72), 1e-6] if small else [leaf(tokens, width), leaf(width), 1e-6]

    def gate(small: bool) -> list[Any]:
        size = (5, 72) if small else (tokens, inner)
        return [leaf(*size), leaf(*size)]

    def turn(small: bool) -> list[Any]:
        t, h = (9, 3) if small else (tokens, heads)
        # as the projections leave it
        x = torch.randn(1, t, h, 128).bfloat16().transpose(1, 2).requires_grad_()
        return [x, *rope_table(torch.arange(t)[None], 128, 1e6)]

    def liger_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction

        return LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)

    def liger_gate(gate: Tensor, up: Tensor) -> Tensor:
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction

        return LigerSiLUMulFunction.apply(gate, up)

    def liger_turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        from liger_kernel.ops.rope import LigerRopeFunction

        # queries and keys, in place; here one head
        return LigerRopeFunction.apply(x, x[:, :1].detach(), cos, sin)[0]

    def torch_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], weight, eps)

    libraries = [("Liger", f) if LIGER else None for f in (liger_norm, liger_gate, liger_turn)]
    libraries[0] = libraries[0] or ("torch", torch_norm)
    one = tokens * width * 2e-9
    yield Case(
        "rms_norm",
        f"{tokens}x{width}",
        norm,
        rms_norm,
        (2 * one, 5 * one),
        by=(),
        library=libraries[0],
    )
    one = tokens * inner * 2e-9
    yield Case(
        "swiglu", f"{tokens}x{inner}", gate, swiglu, (3 * one, 8 * one), by=(), library=libraries[1]
    )
    one = tokens * heads * 128 * 2e-9
    yield Case(
        "rope",
        f"{heads}x{tokens}x128",
        turn,
        rotate,
        (2 * one, 4 * one),
        by=(),
        library=libraries[2],
    )


def tree(small: bool) -> tuple[Tensor, Tensor]:
    """Document and branch ids: six documents of a 1400-token picture and twelve answers of 110, in 16384 tokens."""
    tokens, documents, prefix, branches, length = (
        (261, 3, 60, 3, 9) if small else (16384, 6, 1400, 12, 110)
    )
    document, branch = torch.zeros(2, 1, tokens, dtype=torch.int32, device="cpu")
    for d in range(documents):
        start = d * (prefix + branches * length)
        document[0, start : start + prefix + branches * length] = d + 1
        for b in range(branches):
            at = start + prefix + b * length
            branch[0, at : at + length] = b + 1
    return document, branch


def attention_case() -> Case:
    heads, groups, width = 28, 4, 128
    document, branch = tree(False)
    tokens = document.shape[1]
    pairs = sum(int((end - start).clamp(min=0).sum()) for start, end in reach(document, branch))

    def make(small: bool) -> list[Any]:
        t, h, g = (261, 4, 2) if small else (tokens, heads, groups)
        ids = [x.to(torch.get_default_device()) for x in tree(small)]
        sizes = [(1, n, t, width) for n in (h, g, g)]
        return [*(leaf(*size) for size in sizes), attention_plan(*ids, torch.bfloat16)]

    # what plain flash attention would do
    def causal(q: Tensor, k: Tensor, v: Tensor, _: Any) -> Tensor:
        if not FLASH:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        from flash_attn import flash_attn_func

        return flash_attn_func(*(x.transpose(1, 2) for x in (q, k, v)), causal=True).transpose(1, 2)

    product = 4 * width * heads * pairs * 1e-12
    moved = tokens * width * (2 * heads + 2 * groups) * 2e-9
    shape = f"{heads}/{groups}x{tokens}x{width} tree of {pairs / 1e6:.1f} M pairs"
    flops, library = (
        (product, 3.5 * product),
        ("flash-attn, causal" if FLASH else "torch flash, causal", causal),
    )
    return Case(
        "tree_attention",
        shape,
        make,
        tree_attention,
        (moved, 3 * moved),
        flops,
        ("triton", "cuda"),
        library,
    )


def experts_case() -> Case:
    rows, width, count, inner, top = 16384, 2048, 64, 1024, 8

    def make(small: bool) -> list[Any]:
        r, d, e, i = (37, 16, 8, 8) if small else (rows, width, count, inner)
        return [
            leaf(r, d),
            torch.randn(r, e),
            leaf(e, 2 * i, d),
            leaf(e, d, i),
            2 if small else top,
            False,
        ]

    def liger(x: Tensor, router: Tensor, gate_up: Tensor, down: Tensor, k: int, _: bool) -> Tensor:
        from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

        shares, chosen = router.softmax(-1).topk(k, -1)
        return LigerFusedMoEFunction.apply(x, gate_up, down, chosen.int(), shares)

    product = 2 * rows * top * width * inner * 3 * 1e-12
    moved = (count * width * inner * 3 + rows * top * (2 * width + 3 * inner)) * 2e-9
    shape = f"{rows}x{width}, {top} of {count} experts of {inner}"
    library = ("Liger", liger) if LIGER else None
    return Case(
        "experts",
        shape,
        make,
        experts,
        (moved, 3 * moved),
        (product, 3 * product),
        by=(),
        library=library,
    )


def cases() -> list[Case]:
    """All of them."""
    gathered = [f(size) for f in (gather_case, pool_case) for size in (4, 9)]
    return [
        crops_case(),
        *gathered,
        splice_case(),
        loss_case(),
        attention_case(),
        experts_case(),
        *pointwise_cases(),
    ]
