"""How many pairs of a query and a key see each other in packed message trees: what attention has to multiply."""

import torch
from torch import Tensor


def visible_pairs(
    document_ids: Tensor,
    branch_ids: Tensor,
    image_ids: Tensor | None = None,
) -> Tensor:
    """float64 [], the pairs of `reference.rule` over int [B, T], without those of padding.

    A branch lies in one piece behind its document's prefix, and a picture that sees itself lies within one of the two,
    as the samples of data/sample/ do. No size depends on the values, so that a GPU need not be waited for.
    """
    real = document_ids > 0
    shared = branch_ids == 0
    index = _places(document_ids)
    begins = _changes(document_ids)
    document = _latest(index, begins)
    begins = begins | _changes(branch_ids)
    branch = _latest(index, begins)
    # tokens of prefixes up to each token, and those before its document
    prefix = (shared & real).cumsum(1)
    first = shared.gather(1, document).long()
    before = prefix.gather(1, document) - first
    own = index - branch + 1
    in_branch = branch_ids > 0
    of_prefix = torch.where(in_branch, prefix - before, 0)
    seen = own + of_prefix
    counted = (seen * real).sum()
    pairs = counted.double()
    if image_ids is None:
        return pairs
    return pairs + _later(document_ids, image_ids)


def _later(document_ids: Tensor, image_ids: Tensor) -> Tensor:
    # of each token of a picture the others that come later; sorted, those of a picture follow each other
    real = document_ids > 0
    shown = image_ids > 0
    document = document_ids.long() << 32
    key = document + image_ids
    key = torch.where(real & shown, key, 0)
    key = key.sort(1).values
    index = _places(key)
    begins = _changes(key)
    first = _latest(index, begins)
    earlier = index - first
    return (earlier * (key > 0)).sum()


def _places(ids: Tensor) -> Tensor:
    count = ids.shape[1]
    index = torch.arange(count, device=ids.device)
    return index.expand_as(ids)


def _changes(ids: Tensor) -> Tensor:
    before = ids[:, :-1]
    differs = ids[:, 1:] != before
    first = torch.ones_like(ids[:, :1], dtype=torch.bool)
    return torch.cat((first, differs), 1)


def _latest(index: Tensor, begins: Tensor) -> Tensor:
    begun = torch.where(begins, index, 0)
    return begun.cummax(1).values
