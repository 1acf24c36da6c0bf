"""Whether ids ascend, which FlexAttention's blocks and the cascade's segments take for granted."""

import torch
from torch import Tensor

UNORDERED = "Document and branch ids must ascend: documents, in each the prefix, then its branches, padding last."


def ascend(document_ids: Tensor, branch_ids: Tensor) -> Tensor:
    """bool: whether every run of equal ids, int [B, T], is whole."""
    last = torch.iinfo(document_ids.dtype).max
    document = document_ids.masked_fill(document_ids == 0, last)
    step = document.diff(dim=1)
    same_branch = (branch_ids.diff(dim=1) >= 0) | (document_ids[:, 1:] == 0)
    return ((step > 0) | ((step == 0) & same_branch)).all()
