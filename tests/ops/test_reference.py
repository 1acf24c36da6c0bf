"""The plain-torch ops: against independent formulas in float64, with autograd's own gradients."""

import math

import pytest
import torch
from ops_check import bits, error, errors
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from molmo_ds.ops.crops import normalise_patches
from molmo_ds.ops.experts import experts
from molmo_ds.ops.pool_patches import gather_patches, pool_patches
from molmo_ds.ops.rms_norm import rms_norm
from molmo_ds.ops.rope import rope_table, rotate
from molmo_ds.ops.splice import splice
from molmo_ds.ops.swiglu import swiglu
from molmo_ds.ops.weighted_cross_entropy import (
    CHUNK_ELEMENTS,
    chunks,
    reference,
    weighted_cross_entropy,
)
from molmo_ds.testing.ranks import run_ranks

LIMIT = 1e-5


def leaf(*size: int) -> Tensor:
    return torch.randn(*size).requires_grad_()


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_rms_norm() -> None:
    def plain(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight

    assert max(errors(rms_norm, [leaf(2, 3, 7), leaf(7), 1e-2], reference=plain)) <= LIMIT
    assert (
        max(errors(rms_norm, [leaf(5, 7), leaf(7), 1e-2], reference=plain, stride_0=True)) <= LIMIT
    )


def test_rms_norm_rounds_before_the_weight() -> None:
    # statistics in float32, back to bfloat16, then the weight: two roundings
    x, weight = torch.randn(4, 64).bfloat16(), torch.randn(64).bfloat16()
    wide = x.double()
    normed = (wide / torch.sqrt((wide * wide).mean(-1, keepdim=True) + 1e-6)).bfloat16()
    assert torch.equal(rms_norm(x, weight, 1e-6), normed * weight)


def test_swiglu() -> None:
    assert (
        max(
            errors(
                swiglu, [leaf(3, 5), leaf(3, 5)], reference=lambda g, u: g / (1 + (-g).exp()) * u
            )
        )
        <= LIMIT
    )


def test_rotation_turns_pairs() -> None:
    positions = torch.tensor([[0, 1, 7, 3], [2, 2, -1, 900]])

    def turn(x: Tensor) -> Tensor:  # pairs (i, i + d / 2) as complex numbers
        frequency = 100.0 ** -(torch.arange(3, dtype=torch.float64) / 3)
        angle = positions.clamp(min=0)[:, None, :, None] * frequency
        turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat((turned.real, turned.imag), -1)

    def ours(x: Tensor) -> Tensor:
        return rotate(x, *rope_table(positions, 6, 100.0))

    # the table is float32 and so are its angles: 900 radians are known to 3e-5
    assert max(errors(ours, [leaf(2, 3, 4, 6)], reference=turn)) <= LIMIT
    assert ours(torch.randn(2, 3, 4, 6).bfloat16()).dtype == torch.bfloat16


def test_rope_scaling_is_that_of_llama_3() -> None:
    from transformers import LlamaConfig

    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = LlamaConfig(
        hidden_size=64, num_attention_heads=2, rope_parameters={"rope_theta": 1e4, **scaling}
    )
    frequency, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    cos, sin = rope_table(torch.tensor([[1]]), 32, 1e4, scaling)
    torch.testing.assert_close(torch.atan2(sin, cos)[0, 0, :16], frequency, rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="yarn"):
        rope_table(torch.tensor([[1]]), 32, 1e4, {"rope_type": "linear"})


@pytest.mark.parametrize("factor", [None, 1.5])
def test_rope_scaling_is_yarn(factor: float | None) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}
    scaling |= {"attention_factor": factor, "beta_fast": 32, "beta_slow": 1}
    whole = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        rope_parameters=scaling | {"rope_theta": 5e5},
        max_position_embeddings=512,
    )
    frequency, times = ROPE_INIT_FUNCTIONS["yarn"](whole, "cpu")
    angle = torch.tensor([0, 1, 77])[:, None] * frequency
    cos, sin = rope_table(torch.tensor([[-1, 1, 77]]), 32, 5e5, scaling)
    torch.testing.assert_close(cos[0, :, :16], angle.cos() * times, atol=1e-6, rtol=0)
    torch.testing.assert_close(sin[0, :, 16:], angle.sin() * times, atol=1e-6, rtol=0)


def test_splice() -> None:
    ids = torch.tensor([[0, 9, 12, 3, 3], [10, 10, 10, 1, 13]])  # 10 base words, then 4 extra ones
    positions = torch.tensor([6, -1, 2, 9, 0])

    def plain(base: Tensor, extra: Tensor, features: Tensor) -> Tensor:
        rows = list(torch.cat((base, extra))[ids.flatten()])
        for feature, at in zip(features, positions.tolist()):
            if at >= 0:
                rows[at] = rows[at] + feature
        return torch.stack(rows).view(2, 5, -1)

    def ours(base: Tensor, extra: Tensor, features: Tensor) -> Tensor:
        return splice(ids, base, extra, features, positions)

    args = [leaf(10, 3), leaf(4, 3), leaf(5, 3)]
    assert max(errors(ours, args, reference=plain)) <= LIMIT
    assert max(errors(ours, args, reference=plain, stride_0=True)) <= LIMIT
    assert all(
        torch.equal(a, b) for a, b in zip(bits(ours, args, "torch"), bits(ours, args, "torch"))
    )


def test_a_feature_that_goes_nowhere_cannot_spoil_a_token() -> None:
    features = torch.full((1, 3), math.nan)
    out = splice(
        torch.zeros(1, 2, dtype=torch.int64),
        torch.ones(4, 3),
        torch.ones(1, 3),
        features,
        torch.tensor([-1]),
    )
    assert torch.equal(out, torch.ones(1, 2, 3))


WINDOWS = torch.tensor(
    [[0, 1, 3, 4], [2, -1, 5, -1], [-1, -1, -1, -1], [9, 10, 12, 13], [17, 8, -1, 2]]
)


@pytest.mark.parametrize("masked", [False, True])
def test_gather_patches(masked: bool) -> None:
    # 2 crops of 9 patches after a class token, 2 layers of width 3; patch 2 is in two windows
    shares = torch.rand(2, 9, 2)

    def plain(a: Tensor, b: Tensor, pad_embed: Tensor) -> tuple[Tensor, Tensor]:
        features, means = [], []
        for window in WINDOWS.tolist():
            rows = []
            for patch in window:
                n, p = divmod(patch, 9)
                row = (
                    torch.cat((a[n, p + 1], b[n, p + 1])) + shares[n, p].double() @ pad_embed
                    if patch >= 0
                    else None
                )
                rows.append(torch.zeros(6, dtype=a.dtype) if row is None else row)
            features.append(torch.stack(rows))
            count = max(sum(p >= 0 for p in window), 1) if masked else 4
            means.append(features[-1].sum(0) / count)
        return torch.stack(features), torch.stack(means)

    def ours(a: Tensor, b: Tensor, pad_embed: Tensor) -> tuple[Tensor, Tensor]:
        return gather_patches([a, b], shares, pad_embed, WINDOWS, masked)

    assert max(errors(ours, [leaf(2, 10, 3), leaf(2, 10, 3), leaf(2, 6)], reference=plain)) <= LIMIT


@pytest.mark.parametrize("masked", [False, True])
def test_pool_patches(masked: bool) -> None:
    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = []
        for m, window in enumerate(WINDOWS.tolist()):
            kept = [w for w, patch in enumerate(window) if patch >= 0 or not masked]
            if kept:
                one = F.scaled_dot_product_attention(
                    q[m, :, None], *(x[m, kept].transpose(0, 1) for x in (k, v))
                )[:, 0]
            out.append(one if kept else torch.zeros_like(q[m]))
        return torch.stack(out)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return pool_patches(q, k, v, WINDOWS, masked)

    args = [leaf(5, 2, 3), leaf(5, 4, 2, 3), leaf(5, 4, 2, 3)]
    assert max(errors(ours, args, reference=plain)) <= LIMIT


def test_normalise_patches() -> None:
    images = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    got = normalise_patches(images, mean, std, 2)
    assert got.shape == (2, 6, 12)
    # crop 1, patch 4 = second row, second column; then row 1, column 0, channel 2 inside the patch
    want = (images[1, 3, 2, 2].double() / 255 - mean[2]) / std[2]
    assert got[1, 4, (1 * 2 + 0) * 3 + 2].item() == pytest.approx(want.item(), rel=1e-6)
    with pytest.raises(ValueError, match="do not divide"):
        normalise_patches(images, mean, std, 4)


@pytest.mark.parametrize("normalise", [False, True])
# one grouped product; its alignment not met, one product per expert
@pytest.mark.parametrize("width", [8, 7])
def test_experts(normalise: bool, width: int) -> None:
    # the router is float32 by contract: float64 of the same float32 shares
    logits = torch.randn(11, 5).requires_grad_()
    logits.data[:, 3] = -20.0  # nobody goes there

    def plain(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        shares = logits.softmax(-1)
        best, chosen = shares.topk(2)
        out = torch.zeros_like(x)
        for e in range(5):
            gate, up = (x @ gate_up[e].T).chunk(2, -1)
            share = (
                (chosen == e) * (best / best.sum(-1, keepdim=True) if normalise else best)
            ).sum(-1)
            out = out + share[:, None] * ((F.silu(gate) * up) @ down[e].T)
        return out

    def ours(x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return experts(x, logits, gate_up, down, 2, normalise)

    args = [leaf(11, width), logits, leaf(5, 2 * width, width), leaf(5, width, width)]
    assert max(errors(ours, args, reference=plain)) <= LIMIT
    assert max(errors(ours, args, reference=plain, stride_0=True)) <= LIMIT


def rows(count: int = 45, words: int = 33) -> list:
    # where nothing is learnt the label may be anything: an image token, which lies beyond the head, or -1
    weights = torch.rand(count) * (torch.rand(count) > 0.4)
    labels = torch.randint(0, words, (count,))
    still = weights == 0
    labels[still] = torch.tensor([-1, words, words + 7, 2**40])[
        torch.randint(0, 4, (int(still.sum()),))
    ]
    return [leaf(count, 6), leaf(words, 6), labels, weights, 1e-2]


def total(*args: object) -> tuple[Tensor, ...]:
    ce, z, accuracy = weighted_cross_entropy(*args)
    return ce + z, z.detach(), accuracy.detach()


def total_by_hand(*args: object) -> tuple[Tensor, ...]:
    ce, z, accuracy = reference.weighted_cross_entropy(*args)
    return ce + z, z.detach(), accuracy.detach()


@pytest.mark.parametrize("chunk", [1, 1000, 10**6])  # 16 rows at a time, 30, all
def test_weighted_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", chunk)
    assert max(errors(total, rows(), reference=total_by_hand)) <= LIMIT


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that an operator returned."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [x.numel() for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]
        self.numbers = max([self.numbers, *sizes])
        return out


def test_the_loss_holds_the_logits_of_one_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CHUNK_ELEMENTS, "cpu", 20 * 500)
    hidden, weight, labels, weights, z_loss = rows(count=400, words=500)
    labels = torch.where(weights > 0, labels, 0)
    with torch.no_grad(), Largest() as largest:
        chunks.run(
            hidden, weight, labels, weights, z_loss, [True, True], torch.float32, chunks.rows_torch
        )
    # hidden has 2,400 numbers, the head 3,000, all logits would have 200,000
    assert largest.numbers == 20 * 500


def test_the_loss_reference_is_torchs_cross_entropy() -> None:
    hidden, weight, labels, weights, z_loss = rows()
    logits = hidden @ weight.T
    ce, z, accuracy = reference.weighted_cross_entropy(hidden, weight, labels, weights, z_loss)
    labels = torch.where(weights > 0, labels, 0)
    torch.testing.assert_close(
        ce, (F.cross_entropy(logits, labels, reduction="none") * weights).sum()
    )
    torch.testing.assert_close(z, (z_loss * logits.exp().sum(-1).log() ** 2 * weights).sum())
    assert accuracy == weights[logits.argmax(-1) == labels].sum()


def test_the_loss_of_rows_without_weight() -> None:
    *some, weights, z_loss = rows()
    assert max(errors(total, [*some, torch.zeros(45), z_loss], reference=total_by_hand)) == 0
    none = [x[:0].detach().requires_grad_(x.is_floating_point()) for x in some]
    none[1] = some[1]
    assert max(errors(total, [*none, weights[:0], z_loss], reference=total_by_hand)) == 0


def test_a_label_beyond_the_head_that_is_learnt_is_a_sentence() -> None:
    for label in (-1, 33):
        hidden, weight, labels, weights, z_loss = rows()
        labels[7] = label
        weights[7] = 0.5
        with pytest.raises(
            ValueError, match=f"label {label} of row 7 has a loss weight.*words 0 to 32"
        ):
            weighted_cross_entropy(hidden, weight, labels, weights, z_loss)


def test_the_two_losses_share_a_gradient() -> None:
    ce, z, _ = weighted_cross_entropy(*rows())
    with pytest.raises(RuntimeError, match="ce_sum"):
        (ce + 2 * z).backward()
    hidden, weight, *rest = rows()
    ce, z, _ = weighted_cross_entropy(hidden, weight, *rest)
    loss = 3 * (ce + z)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()
    plain = [x.detach().requires_grad_() for x in (hidden, weight)]
    ce, z, _ = reference.weighted_cross_entropy(*plain, *rest)
    (3 * (ce + z)).backward()
    assert max(error(a.grad, b.grad) for a, b in zip((hidden, weight), plain)) <= LIMIT
    frozen = weighted_cross_entropy(hidden.detach(), weight.detach(), *rest)
    assert not frozen[0].requires_grad
    torch.testing.assert_close(frozen[0], ce.detach())


def test_under_autocast() -> None:
    # logits from bfloat16 products, everything after them in float32; gradients in the leaves' type
    hidden, weight, labels, weights, z_loss = rows()
    with torch.autocast("cpu", torch.bfloat16):
        ce, z, _ = weighted_cross_entropy(hidden, weight, labels, weights, z_loss)
        out = experts(leaf(9, 16), torch.randn(9, 8), leaf(8, 16, 16), leaf(8, 16, 8), 2, False)
        normed = rms_norm(leaf(2, 8), leaf(8), 1e-6)
    assert ce.dtype == out.dtype == normed.dtype == torch.float32
    of_hidden, of_weight = torch.autograd.grad(ce + z, (hidden, weight))
    assert of_hidden.dtype == of_weight.dtype == torch.float32
    exact = reference.weighted_cross_entropy(
        hidden.double(), weight.double(), labels, weights.double(), z_loss
    )
    wanted = torch.autograd.grad(exact[0] + exact[1], (hidden, weight))
    assert max(map(error, (ce, z, of_hidden, of_weight), (*exact[:2], *wanted))) <= 1e-2
    logits = (hidden.bfloat16() @ weight.bfloat16().T).float()
    labels = torch.where(weights > 0, labels, 0)
    assert ce.item() == pytest.approx(
        (F.cross_entropy(logits, labels, reduction="none") * weights).sum().item()
    )


def test_shapes_on_meta() -> None:
    with torch.device("meta"):
        hidden, weight = (
            torch.empty(9, 4, requires_grad=True),
            torch.empty(33, 4, requires_grad=True),
        )
        ce, _, _ = weighted_cross_entropy(
            hidden, weight, torch.empty(9).long(), torch.empty(9), 0.0
        )
        ce.backward()
        assert weight.grad.shape == (33, 4)
        assert experts(
            torch.empty(9, 4),
            torch.empty(9, 8),
            torch.empty(8, 6, 4),
            torch.empty(8, 4, 3),
            2,
            True,
        ).is_meta
        ids = torch.empty(2, 5).long()
        assert splice(ids, weight, weight, hidden, torch.empty(9).long()).shape == (2, 5, 4)


def test_compiled_without_graph_breaks() -> None:
    def step(hidden: Tensor, weight: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        x = splice(labels[None], weight, weight, hidden, torch.arange(9))[0]
        x = swiglu(rms_norm(x, weight[0], 1e-6), x)
        q, k, v = x[:5, None], x[:4].expand(5, 4, 4)[:, :, None], x[4:8].expand(5, 4, 4)[:, :, None]
        x = x + pool_patches(q, k, v, WINDOWS, True).mean()
        ce, z, _ = weighted_cross_entropy(x, weight, labels, weights, 1e-2)
        return ce + z

    args = [leaf(9, 4), leaf(33, 4), torch.randint(0, 33, (9,)), torch.rand(9)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    assert max(errors(compiled, args, reference=step)) <= LIMIT


def _vocabulary_split(world: object) -> list[float]:
    rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    torch.manual_seed(0)
    hidden, weight, labels, weights, z_loss = rows(words=34)
    own = weight.detach().chunk(size)[rank].clone().requires_grad_()
    group = torch.distributed.group.WORLD
    sums = weighted_cross_entropy(hidden, own, labels, weights, z_loss, group)
    got = torch.autograd.grad(sums[0] + sums[1], (hidden, own))
    exact = reference.weighted_cross_entropy(
        hidden.double(), weight.double(), labels, weights.double(), z_loss
    )
    wanted = torch.autograd.grad(exact[0] + exact[1], (hidden, weight))
    return [
        error(a, b) for a, b in zip((*sums, *got), (*exact, wanted[0], wanted[1].chunk(size)[rank]))
    ]


def test_words_split_over_two_ranks() -> None:
    for found in run_ranks(_vocabulary_split, 2):
        assert max(found) <= LIMIT


@pytest.mark.parametrize("width", [16, 6], ids=["grouped product", "expert by expert"])
def test_experts_of_several_holders_add_up(width: int) -> None:
    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=source)

    x, logits, gate_up, down = leaves = (
        drawn(9, width),
        drawn(9, 6),
        drawn(6, 2 * width, width),
        drawn(6, width, width),
    )
    logits[:, 2:4] = -30.0  # a holder whose experts nobody chose
    for leaf in leaves:
        leaf.requires_grad_(True)
    whole = experts(x, logits, gate_up, down, 2, True)
    # memory that a product leaves as it is must not reach a gradient
    torch.full((64, 64), torch.nan)
    parts = [
        experts(x, logits, gate_up[i : i + 2], down[i : i + 2], 2, True, first=i) for i in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-5, rtol=1e-5)
    assert not parts[1].any() and parts[0].any() and parts[2].any()
    wanted = torch.autograd.grad(whole.sin().sum(), leaves)
    found = torch.autograd.grad(sum(parts).sin().sum(), leaves)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
