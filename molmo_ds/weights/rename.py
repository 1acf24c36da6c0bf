"""Tensors of others become ours and back, one rule of a rename table (model/families/table.py) at a time."""

from collections.abc import Callable, Iterator

from torch import Tensor

from molmo_ds.model.families.table import Rule, Table

Read = Callable[[str], Tensor]  # a tensor by its name
Named = Iterator[tuple[str, Tensor]]


def to_ours(table: Table, read: Read) -> Named:
    """Yield (our name, tensor), reading theirs one rule at a time."""
    for rule in table:
        yield from zip(rule.ours, _ours_of(rule, read))


def to_theirs(table: Table, read: Read) -> Named:
    """The inverse of `to_ours`."""
    for rule in table:
        yield from zip(rule.theirs, _theirs_of(rule, read))


def _ours_of(rule: Rule, read: Read) -> list[Tensor]:
    # a function, since a variable of the generator would keep what was read while the next is
    theirs = [read(name) for name in rule.theirs]
    return rule.form.to_ours(theirs)


def _theirs_of(rule: Rule, read: Read) -> list[Tensor]:
    ours = [read(name) for name in rule.ours]
    return rule.form.to_theirs(ours)
