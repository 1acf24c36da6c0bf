"""The least time that a machine needs for what some work computes: its matrix products and visible attention.

Each product counts at the best rate of MKL, oneDNN and our own kernel for its own shape, one thread, float32, its
inputs in the cache; visible attention at the mean rate of the products.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import OPDEFS
from torch.utils._python_dispatch import TorchDispatchMode

from molmo_ds.ops import dispatch
from molmo_ds.ops.linear import library

Shape = tuple[int, int, int]  # rows, inner, columns
aten = torch.ops.aten
ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
)
# products of one pair (query, key), each 2 operations a channel: scores and values; backward also both gradients of
# each, and the scores once more
PRODUCTS = {ATTENTION[0]: 2, ATTENTION[1]: 5}


class Count(TorchDispatchMode):
    """The matrix products of what runs inside, by shape, and the operations of attention that are visible."""

    def __init__(self) -> None:
        super().__init__()
        self.products: Counter[Shape] = Counter()
        self.attention = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "molmo_ds":  # what one of our ops computes is seen inside it alone
            with self:
                return OPDEFS[function._schema.name]._init_fn(*args, **kwargs)
        if function is aten.mm.default:
            self.add(args[0], args[1])
        elif function is aten.addmm.default:
            self.add(args[1], args[2])
        elif function is aten.linear.default:  # not taken apart inside an op
            self.add(args[0].flatten(0, -2), args[1].T)
        elif function is aten.bmm.default:
            for _ in range(args[0].shape[0]):
                self.add(args[0][0], args[1][0])
        elif function in ATTENTION:
            first = args[0] if function is ATTENTION[0] else args[1]
            keys = args[1] if function is ATTENTION[0] else args[2]
            pairs = visible_pairs(first, keys, function is ATTENTION[0], args, kwargs)
            self.attention += 2 * PRODUCTS[function] * pairs * first.shape[-1]
        return function(*args, **kwargs)

    def add(self, a: Tensor, b: Tensor) -> None:
        """One product of a [R, K] and b [K, N]."""
        self.products[a.shape[0], a.shape[1], b.shape[1]] += 1

    @property
    def operations(self) -> int:
        """Of all matrix products."""
        return sum(2 * m * k * n * count for (m, k, n), count in self.products.items())


def visible_pairs(queries: Tensor, keys: Tensor, forward: bool, args: tuple, kwargs: dict) -> int:
    """Pairs of a query and a key that see each other, over all heads."""
    batch, heads, rows, _ = queries.shape
    causal = args[4] if forward and len(args) > 4 else kwargs.get("is_causal", False)
    causal = args[7] if not forward and len(args) > 7 else causal
    mask = kwargs.get("attn_mask")
    if mask is not None:
        seen = mask if mask.dtype == torch.bool else mask > -1e30
        return int(seen.expand(batch, heads, rows, keys.shape[2]).sum())
    each = rows * (rows + 1) // 2 if causal else rows * keys.shape[2]
    return batch * heads * each


def best_seconds(shape: Shape) -> float:
    """The least CPU time of a float32 product of that shape, by any of the machine's ways."""
    rows, inner, columns = shape
    a = torch.randn(rows, inner)
    b = torch.randn(columns, inner)
    repeats = max(1, int(2e8 / (2 * rows * inner * columns)))
    found = []
    for way in library.ways().values():
        way(a, b)
        began = time.process_time()
        for _ in range(repeats):
            way(a, b)
        found.append((time.process_time() - began) / repeats)
    return min(found)


class Limit:
    """What some work multiplies, counted with plain ops, and the least time that it takes.

    A machine's speed varies: measure it in turn with what is compared with it.
    """

    def __init__(self, work: Callable[[], object]) -> None:
        self.count = Count()
        with dispatch.use("torch"), self.count:
            work()

    def measure(self) -> float:
        """CPU seconds of all products and of visible attention now."""
        products = self.count.products.items()
        seconds = sum(times * best_seconds(shape) for shape, times in products)
        return seconds * (1 + self.count.attention / self.count.operations)

    def told(self, seconds: float) -> str:
        """What was counted, and the rate in these seconds."""
        products = self.count.operations / 1e9
        attention = self.count.attention / 1e9
        rate = (products + attention) / seconds
        return f"{products:.1f} GF of products and {attention:.1f} GF of visible attention at {rate:.0f} GF/s"
