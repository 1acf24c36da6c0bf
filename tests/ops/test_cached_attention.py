"""Attention over a KV cache: place by place in double, and flash-attn's call with a stand-in that follows its page."""

import sys
import types

import pytest
import torch
from torch import Tensor

from molmo_ds.ops.cached_attention import cached_attention, flash, step_plan

ROWS = 3
SLOTS = 5
PLACES = 11
GROUPS = 2
HEADS = 6
WIDTH = 8
POSITIONS = [4, 0, 8]
LONGEST = 9


def inputs(dtype: torch.dtype) -> list[Tensor]:
    """q, k, v, keys and values; whatever no row sees is NaN, except where a mask needs finite numbers."""
    drawn = torch.Generator().manual_seed(0)
    q = torch.randn(ROWS, HEADS, 1, WIDTH, generator=drawn, dtype=dtype)
    k, v = torch.randn(2, ROWS, GROUPS, 1, WIDTH, generator=drawn, dtype=dtype)
    cache = torch.full((2, SLOTS, GROUPS, PLACES, WIDTH), torch.nan, dtype=dtype)
    cache[:, :ROWS, :, :LONGEST] = torch.randn(
        2, ROWS, GROUPS, LONGEST, WIDTH, generator=drawn, dtype=dtype
    )
    return [q, k, v, *cache]


def one_by_one(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(q . keys / sqrt(d)) values for each row and head, over its places and its new token."""
    out = torch.empty_like(q)
    for row, position in enumerate(POSITIONS):
        for head in range(HEADS):
            group = head // (HEADS // GROUPS)
            seen = torch.cat((keys[row, group, :position], k[row, group]))
            shares = (seen @ q[row, head, 0] / WIDTH**0.5).softmax(0)
            out[row, head, 0] = shares @ torch.cat((values[row, group, :position], v[row, group]))
    return out


def written(x: list[Tensor]) -> list[Tensor]:
    """The cache after the step."""
    out = [x[3].clone(), x[4].clone()]
    for kept, new in zip(out, x[1:3]):
        for row, position in enumerate(POSITIONS):
            kept[row, :, position] = new[row, :, 0]
    return out


def check(run: object, dtype: torch.dtype, tolerance: float, device: str = "cpu") -> None:
    x = [tensor.to(device) for tensor in inputs(dtype)]
    expected = one_by_one(*(tensor.double() for tensor in x))
    cache = written(x)
    plan = step_plan(torch.tensor(POSITIONS, device=device), LONGEST, dtype)
    out = run(*x, plan)
    torch.testing.assert_close(out.double(), expected, atol=tolerance, rtol=0)
    for kept, after in zip(x[3:], cache):
        torch.testing.assert_close(kept, after, atol=0, rtol=0, equal_nan=True)


def test_each_row_sees_its_places_and_no_slot_but_its_own() -> None:
    check(cached_attention, torch.float64, 1e-14)


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cache_seqlens: Tensor,
    causal: bool,
) -> Tensor:
    """The stand-in: q, k, v [B, 1, heads, d], caches [B, C, G, d]; k and v go to cache_seqlens, which all see."""
    assert cache_seqlens.dtype == torch.int32 and causal
    for x in (q, k_cache, v_cache, k, v):
        assert x.stride(-1) == 1, "the library wants the last dimension in one piece"
    out = torch.empty_like(q)
    for row, length in enumerate(cache_seqlens.tolist()):
        k_cache[row, length] = k[row, 0]
        v_cache[row, length] = v[row, 0]
        for head in range(q.shape[2]):
            group = head * k.shape[2] // q.shape[2]
            seen = k_cache[row, : length + 1, group]
            shares = (seen @ q[row, 0, head] * q.shape[-1] ** -0.5).softmax(0)
            out[row, 0, head] = shares @ v_cache[row, : length + 1, group]
    return out


def test_flash_attns_call_is_given_what_its_page_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    library = types.ModuleType("flash_attn")
    library.flash_attn_with_kvcache = flash_attn_with_kvcache
    monkeypatch.setitem(sys.modules, "flash_attn", library)
    check(flash.cached_attention, torch.float64, 1e-14)


def test_flash_attns_call_has_a_shape_before_it_runs() -> None:
    x = [tensor.to("meta") for tensor in inputs(torch.bfloat16)]
    plan = step_plan(torch.tensor(POSITIONS).to("meta"), LONGEST, torch.bfloat16)
    out = flash.cached_attention(*x, plan)
    assert (out.shape, out.dtype, out.is_contiguous()) == (x[0].shape, torch.bfloat16, True)


@pytest.mark.skipif(
    not (flash.HAS_FLASH and torch.cuda.is_available()),
    reason="needs a GPU and flash-attn, which is not installed",
)
def test_flash_attn_itself() -> None:
    check(flash.cached_attention, torch.bfloat16, 2e-2, "cuda")
