"""What only a GPU can show: attention's backward passes, the CUDA kernels, and half precision, against float64."""

import pytest
import torch
from ops_check import bits, errors
from test_tree_attention import LONG, PICTURES, by_hand
from torch import Tensor

from molmo_ds.model.molmo import Molmo
from molmo_ds.ops import cuda_library, dispatch
from molmo_ds.ops.experts import experts
from molmo_ds.ops.pool_patches import pool_patches
from molmo_ds.ops.tree_attention import attention_plan, tree_attention, visible
from molmo_ds.ops.weighted_cross_entropy import reference, weighted_cross_entropy
from molmo_ds.testing import synthetic

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU: nothing of this file is checked here"
)


def leaf(*size: int, dtype: torch.dtype = torch.bfloat16, scale: float = 1.0) -> Tensor:
    return (torch.randn(*size, device="cuda") * scale).to(dtype).requires_grad_()


@pytest.mark.parametrize(
    ("by", "dtype", "limit"),
    [
        ("triton", torch.float32, 1e-5),
        ("triton", torch.bfloat16, 1e-2),
        ("cuda", torch.bfloat16, 1e-2),
    ],
)
def test_tree_attention(by: str, dtype: torch.dtype, limit: float) -> None:
    torch.manual_seed(0)
    document, branch = (x.cuda() for x in LONG)
    real = (document != 0)[:, None, :, None]  # the cascade's padding attends to padding

    def ours(*args: Tensor) -> Tensor:
        return tree_attention(*args, attention_plan(document, branch, dtype)) * real

    args = [leaf(4, n, 900, 64, dtype=dtype) for n in (4, 2, 2)]
    assert max(errors(ours, args, by, lambda *a: by_hand(*a, document, branch) * real)) <= limit


def test_pictures_both_ways() -> None:
    torch.manual_seed(0)
    document, branch, pictures = (x.cuda() for x in (*LONG, PICTURES))

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
        return (
            scores.masked_fill(~visible(document, branch, pictures)[:, None], -torch.inf).softmax(
                -1
            )
            @ v
        )

    def ours(*args: Tensor) -> Tensor:
        plan = attention_plan(document, branch, torch.float32, pictures)
        return tree_attention(*args, plan)

    args = [leaf(4, 2, 900, 64, dtype=torch.float32) for _ in range(3)]
    assert max(errors(ours, args, "triton", plain)) <= 1e-5


@pytest.mark.parametrize("by", ["triton", "cuda"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("masked", [False, True])
def test_pool_patches(by: str, dtype: torch.dtype, limit: float, masked: bool) -> None:
    if by == "cuda" and cuda_library.load() is None:
        pytest.skip("the CUDA library was not built: python -m molmo_ds.ops.cuda_library")
    torch.manual_seed(0)
    for size, width in ((4, 64), (9, 72)):
        windows = torch.randint(-2, 9, (1001, size), device="cuda")
        args = [leaf(1001, 16, width, dtype=dtype)]
        args += [leaf(1001, size, 16, width, dtype=dtype) for _ in range(2)]
        found, plain = (
            max(errors(pool_patches, [*args, windows, masked], one)) for one in (by, "torch")
        )
        assert found <= limit
        assert dtype == torch.float32 or found <= 1.5 * plain
        runs = [bits(pool_patches, [*args, windows, masked], by) for _ in range(2)]
        assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_weighted_cross_entropy_in_half_precision() -> None:
    torch.manual_seed(0)
    weights = torch.rand(3000, device="cuda") * (torch.rand(3000, device="cuda") > 0.5)
    args = [
        leaf(3000, 256, scale=1 / 16),
        leaf(1537, 256),
        torch.randint(0, 1537, (3000,), device="cuda"),
        weights,
        1e-4,
    ]

    def total(*args: Tensor) -> Tensor:
        ce, z, _ = weighted_cross_entropy(*args)
        return ce + z

    def plain(*args: Tensor) -> Tensor:
        ce, z, _ = reference.weighted_cross_entropy(*args)
        return ce + z

    found, eager = (max(errors(total, args, by, plain)) for by in ("triton", "torch"))
    assert found <= min(1e-2, 1.5 * eager)


def test_experts_in_half_precision() -> None:
    torch.manual_seed(0)
    logits = torch.randn(301, 8, device="cuda")
    args = [leaf(301, 64), logits, leaf(8, 64, 64), leaf(8, 64, 32), 2, False]
    assert max(errors(experts, args)) <= 1e-2


@pytest.mark.parametrize("by", [None, "torch"])
def test_a_forward_and_backward_pass_waits_for_nothing(by: str | None) -> None:
    # tests/model/test_no_host_sync.py says the same of the code; here it is the device that says so
    model = Molmo(synthetic.MODEL).cuda().train()
    model.reset_parameters(0)

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            ce, z, _ = model(synthetic.sequence(0, 0).to("cuda"))
        (ce + z).backward()

    with dispatch.use(by):
        step()  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchronizing"):
                model.embed.embedding.sum().item()
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
