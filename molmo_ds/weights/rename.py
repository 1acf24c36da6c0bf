"""Tensors of others become ours and back, one rule of a rename table (model/families/table.py) at a time."""

from collections.abc import Callable, Iterator

from torch import Tensor

from molmo_ds.model.families.table import Table


def to_ours(table: Table, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield (our name, tensor), reading theirs one rule at a time."""
    for rule in table:
        yield from zip(rule.ours, rule.form.to_ours([read(key) for key in rule.theirs]))


def to_theirs(table: Table, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The inverse of `to_ours`."""
    for rule in table:
        yield from zip(rule.theirs, rule.form.to_theirs([read(name) for name in rule.ours]))
