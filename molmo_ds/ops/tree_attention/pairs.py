"""How many pairs of a query and a key see each other in packed message trees: what attention has to multiply."""

import torch
from torch import Tensor


def visible_pairs(
    document_ids: Tensor, branch_ids: Tensor, image_ids: Tensor | None = None
) -> Tensor:
    """float64 [], the pairs of `reference.rule` over int [B, T], without those of padding.

    A branch lies in one piece behind its document's prefix, and a picture that sees itself lies within one of the two,
    as the samples of data/sample/ do. No size depends on the values, so that a GPU need not be waited for.
    """
    real = document_ids > 0
    index = torch.arange(document_ids.shape[1], device=real.device).expand_as(document_ids)
    begins = _changes(document_ids)
    document = _latest(index, begins)
    branch = _latest(index, begins | _changes(branch_ids))
    prefix = ((branch_ids == 0) & real).cumsum(1)  # tokens of a prefix up to each
    before = prefix.gather(1, document) - (branch_ids == 0).gather(1, document).long()
    own = index - branch + 1
    seen = own + torch.where(branch_ids > 0, prefix - before, 0)
    pairs = (seen * real).sum().double()
    return pairs if image_ids is None else pairs + _later(document_ids, image_ids)


def _later(document_ids: Tensor, image_ids: Tensor) -> Tensor:
    # of each token of a picture the others that come later; sorted, those of a picture follow each other
    key = document_ids.long() * (1 << 32) + image_ids
    key = torch.where((document_ids > 0) & (image_ids > 0), key, 0).sort(1).values
    index = torch.arange(key.shape[1], device=key.device).expand_as(key)
    return ((index - _latest(index, _changes(key))) * (key > 0)).sum()


def _changes(ids: Tensor) -> Tensor:
    first = torch.ones_like(ids[:, :1], dtype=torch.bool)
    return torch.cat((first, ids[:, 1:] != ids[:, :-1]), 1)


def _latest(index: Tensor, begins: Tensor) -> Tensor:
    return torch.where(begins, index, 0).cummax(1).values
