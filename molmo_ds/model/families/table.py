"""Rename tables: which tensors of ours hold the same numbers as which of theirs.

A table is a list of rules. A rule carries two inverse functions where the layout differs (q, k and v fused into one
matrix, experts stacked, ...). Tables are written out for one configuration, so that "missing" and "left over" are set
differences, and a rule moves at most the MLP of one layer, so that a 72B model is converted tensor by tensor.

D width, I half of the SwiGLU (or one expert), E experts, p patch size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from molmo_ds.architecture import TextConfig


@dataclass(frozen=True)
class Form:
    """Two inverse functions between lists of tensors; `to_ours` may return views.

    `rows(read, index, first, last)` makes rows [first, last) of `to_ours(...)[index]` of no more of theirs than they
    need, where `read(number, first, last)` gives rows of their tensor `number`, by default all. None: theirs are small.
    """

    to_ours: Callable[[list[Tensor]], list[Tensor]]
    to_theirs: Callable[[list[Tensor]], list[Tensor]]
    rows: Callable[[Callable[..., Tensor], int, int, int], Tensor] | None = None


@dataclass(frozen=True)
class Rule:
    """`ours` and `theirs` hold the same numbers."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    form: Form


Table = list[Rule]
SAME = Form(lambda t: t, lambda t: t, lambda read, _, first, last: read(0, first, last))


def rows(*sizes: int) -> Form:
    """Theirs is one matrix (or bias) whose rows are ours, one after the other."""
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return Form(
        lambda t: list(t[0].split(list(sizes))),
        lambda t: [torch.cat(t)],
        lambda read, index, first, last: read(0, starts[index] + first, starts[index] + last),
    )


def patches(p: int) -> Form:
    """A convolution's [D, 3, p, p] <-> [D, p * p * 3] with columns (row, column, channel)."""
    return Form(
        lambda t: [t[0].permute(0, 2, 3, 1).reshape(t[0].shape[0], -1)],
        lambda t: [t[0].reshape(-1, p, p, 3).permute(0, 3, 1, 2).contiguous()],
    )


# gate 0, up 0, gate 1, ... each [I, D] <-> [E, 2 I, D]
GATE_UP_PER_EXPERT = Form(
    lambda t: [torch.stack([torch.cat(t[i : i + 2]) for i in range(0, len(t), 2)])],
    lambda t: [half.contiguous() for expert in t[0] for half in expert.chunk(2)],
    lambda read, _, first, last: torch.stack(
        [torch.cat((read(2 * e), read(2 * e + 1))) for e in range(first, last)]
    ),
)
# [D, I] each <-> [E, D, I]
DOWN_PER_EXPERT = Form(
    lambda t: [torch.stack(t)],
    lambda t: [weight.contiguous() for weight in t[0]],
    lambda read, _, first, last: torch.stack([read(e) for e in range(first, last)]),
)


def pairs(ours: str, theirs: str, names: dict[str, str]) -> Table:
    """A rule for each of `names`, our name -> theirs; `ours` and `theirs` are prefixes."""
    return [Rule((ours + a,), (theirs + b,), SAME) for a, b in names.items()]


def alike(ours: str, theirs: str, names: list[str]) -> Table:
    """A rule for each name that is the same after both prefixes."""
    return pairs(ours, theirs, {name: name for name in names})


def affine(ours: str, theirs: str, names: dict[str, str]) -> Table:
    """Two rules for each module of `names`: its weight and its bias."""
    return pairs(
        ours,
        theirs,
        {f"{a}.{part}": f"{b}.{part}" for a, b in names.items() for part in ("weight", "bias")},
    )


def norms(text: TextConfig, attention: str, mlp: str) -> dict[str, str]:
    """Our names -> theirs of the two norms of a decoder layer; none where norms have no weights (OLMo)."""
    if text.norm_type == "layer":
        return {}
    first = "post_attention_layernorm" if text.norm_after else "input_layernorm"
    second = "post_feedforward_layernorm" if text.norm_after else "post_attention_layernorm"
    return {f"{first}.weight": f"{attention}.weight", f"{second}.weight": f"{mlp}.weight"}


def head(text: TextConfig, norm: str, lm_head: str) -> Table:
    """The last norm and the head."""
    names = {} if text.norm_type == "layer" else {"norm.weight": f"{norm}.weight"}
    names["lm_head.weight"] = f"{lm_head}.weight"
    return pairs("head.", "", names)


def experts(text: TextConfig, ours: str, theirs: str) -> Table:
    """A router and experts with a tensor each, as OLMoE's files have them."""
    each = [f"{theirs}experts.{e}." for e in range(text.num_experts)]
    gate_up = tuple(f"{expert}{part}_proj.weight" for expert in each for part in ("gate", "up"))
    down = tuple(f"{expert}down_proj.weight" for expert in each)
    return [
        Rule((f"{ours}gate.weight",), (f"{theirs}gate.weight",), SAME),
        Rule((f"{ours}experts.gate_up_proj",), gate_up, GATE_UP_PER_EXPERT),
        Rule((f"{ours}experts.down_proj",), down, DOWN_PER_EXPERT),
    ]
