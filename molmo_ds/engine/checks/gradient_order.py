"""A guard that is always on: gradients become ready in one order, which is the same on every rank.

DeepSpeed's ZeRO-2 copies gradients into its bucket in the order in which they come and adds the buckets of all ranks:
two orders make it average one parameter's gradient with another's, without a word (deepspeedai/DeepSpeed issues 2343
and 1186). ZeRO-3 sorts each bucket, but where a bucket ends is decided by the order too.

Autograd runs the nodes of a graph by falling sequence number, so the order is known before the backward pass. The
first one is compared before any gradient is reduced; each later gradient is compared with the first pass when it
arrives; and once a step the ranks compare a hash of all that in an all-reduce that they make anyway.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from molmo_ds.batch import pinned
from molmo_ds.engine.checks.faults import GradientOrderError

HASHES = 2  # numbers below 2**20: the sums of their squares over 8,192 ranks are exact in float64
ADVICE = (
    "what the network runs must not depend on what one rank's batch holds. This is a fault of molmo_ds, or of a module "
    "added to it, and not of your settings; until it is mended strategy=ds_configs/zero1.json trains right."
)


class GradientOrder:
    """Watches the parameters of one rank.

    Args:
        group: the ranks that compare, None = all.
        device: where the compared numbers lie.
        part: which part of the network this rank holds (its pipeline stage); only ranks of one part are compared.
        parts: number of parts, each held by equally many ranks of the group.
    """

    def __init__(
        self, group: dist.ProcessGroup | None, device: torch.device, part: int = 0, parts: int = 1
    ) -> None:
        self.group = group
        self.device = device
        self.part = part
        self.parts = parts
        self.hooks: list[RemovableHandle] = []
        self.names: list[str] = []
        self.places: dict[int, int] = {}  # id of a parameter -> its place in `names`
        # the order of the first pass, which all later ones repeat
        self.first: list[int] | None = None
        self.seen: list[int] = []  # in the pass under way
        self.passes = 0  # since the last comparison

    def watch(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        """Follow these parameters, those that train, and no others; call it before DeepSpeed adds its own hooks."""
        for hook in self.hooks:
            hook.remove()
        self.hooks = []
        self.names = []
        self.places = {}
        for name, parameter in parameters:
            if parameter.requires_grad:
                self.places[id(parameter)] = len(self.names)
                self.hooks.append(
                    parameter.register_post_accumulate_grad_hook(self._hook(len(self.names)))
                )
                self.names.append(name)

    def compare_before(self, loss: Tensor) -> None:
        """Before the very first backward pass: GradientOrderError, on every rank, if ranks would differ in it."""
        if self.first is not None:
            return
        order = [
            self.places[id(parameter)]
            for parameter in order_of(loss)
            if id(parameter) in self.places
        ]
        total = self._hashes(order, 1)
        dist.all_reduce(total, group=self.group)
        self._compare(total.tolist(), order)

    def end_pass(self) -> None:
        """Call it after each backward pass (in a pipeline: after all of a step)."""
        if self.first is None:
            self.first = list(self.seen)
        elif len(self.seen) < len(self.first):
            missing = self.names[self.first[len(self.seen)]]
            raise GradientOrderError(
                f"{missing} got no gradient in this backward pass, but in the first: {ADVICE}"
            )
        self.seen.clear()
        self.passes += 1

    def fingerprint(self) -> Tensor:
        """float64 [parts * HASHES * 2] of the passes since the last call, to be summed over the group for `check`."""
        found = self._hashes(self.first or [], self.passes)
        self.passes = 0
        return found

    def check(self, total: list[float]) -> None:
        """GradientOrderError, on every rank, unless the fingerprints that were summed are equal."""
        self._compare(total, self.first or [])

    def _hook(self, place: int) -> Callable[[Tensor], None]:
        def arrived(_: Tensor) -> None:
            at = len(self.seen)
            if self.first is not None and self.first[at : at + 1] != [place]:
                due = self.names[self.first[at]] if at < len(self.first) else "none"
                raise GradientOrderError(
                    f"Gradient {at + 1} of this backward pass is that of {self.names[place]}, in the first pass it was "
                    f"{due}: {ADVICE}"
                )
            self.seen.append(place)

        return arrived

    def _hashes(self, order: list[int], passes: int) -> Tensor:
        text = "\n".join([str(passes), *(self.names[place] for place in order)])
        out = torch.zeros(self.parts, HASHES, 2, dtype=torch.float64)
        for i in range(HASHES):
            digest = hashlib.blake2b(text.encode(), digest_size=8, salt=bytes([i])).digest()
            value = int.from_bytes(digest, "big") % 2**20
            out[self.part, i] = torch.tensor([value, value**2])
        out = out.flatten()
        if self.device.type == "cuda":
            return pinned(out).to(self.device, non_blocking=True)
        return out

    def _compare(self, total: list[float], order: list[int]) -> None:
        # n numbers are equal if n times the sum of their squares is the square of their sum: a rank can tell that of
        # numbers that it does not know, so that all ranks come to the same verdict
        ranks = dist.get_world_size(self.group) // self.parts
        pairs = zip(total[::2], total[1::2])
        if any(ranks * int(squares) != int(numbers) ** 2 for numbers, squares in pairs):
            self._explain(order)

    def _explain(self, order: list[int]) -> None:
        everyone: list = [None] * dist.get_world_size(self.group)
        mine = dist.get_rank(), self.part, [self.names[place] for place in order]
        dist.all_gather_object(everyone, mine, group=self.group)
        for part in range(self.parts):
            (rank, _, names), *others = [entry for entry in everyone if entry[1] == part]
            for other, _, other_names in others:
                if names != other_names:
                    raise GradientOrderError(difference(rank, names, other, other_names))
        raise GradientOrderError(
            f"Ranks ran different numbers of backward passes in one step; {ADVICE}"
        )


def difference(rank: int, names: list[str], other: int, other_names: list[str]) -> str:
    """The sentence for two ranks whose orders differ: the first gradient that does."""
    pairs = itertools.zip_longest(names, other_names, fillvalue="none")
    numbered = enumerate(pairs, start=1)
    at, (here, there) = next((at, pair) for at, pair in numbered if pair[0] != pair[1])
    return (
        f"The ranks' gradients become ready in different orders: gradient {at} is that of {here} on rank {rank} and "
        f"that of {there} on rank {other}; {ADVICE}"
    )


def order_of(loss: Tensor) -> list[Tensor]:
    """The leaves of a graph in the order in which a backward pass will reach them.

    Nodes run by falling sequence number, and a leaf is ready when the last of its consumers has run.
    """
    nodes = {loss.grad_fn}
    left: dict = {}  # leaf's node -> consumers that have not run
    waiting = [loss.grad_fn]
    while waiting:
        for child, _ in waiting.pop().next_functions:
            if child is None:
                continue
            if hasattr(child, "variable"):
                left[child] = left.get(child, 0) + 1
            elif child not in nodes:
                nodes.add(child)
                waiting.append(child)
    out = []
    for node in sorted(nodes, key=lambda node: -node._sequence_nr()):
        for child, _ in node.next_functions:
            if child in left:
                left[child] -= 1
                if left[child] == 0:
                    out.append(child.variable)
    return out
