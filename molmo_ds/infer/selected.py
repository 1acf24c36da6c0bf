"""Answers of HeMolmo, greedily and without a cache: what those from slots are compared with.

Shapes: B rows, T tokens, L new tokens.
"""

import torch
from torch import Tensor

from molmo_ds.batch import SelectionBatch
from molmo_ds.model.molmo import Molmo


@torch.no_grad()
def answer(
    model: Molmo, prompts: SelectionBatch, eos: int, max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    """(token ids int64 [B, L], sums of their log-probabilities [B]) to prompts that are padded on the right.

    Each token costs a pass over the whole row; the picks are the same in each, since answers lie after what is scored.
    A row that has ended repeats `eos`.
    """
    rows, tokens = prompts.input_ids.shape
    batch = prompts.padded(tokens + max_new_tokens, 0)
    used = (prompts.document_ids != 0).sum(1)
    index = torch.arange(rows, device=used.device)
    answers = []
    scores = torch.zeros(rows, device=used.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=used.device)
    for _ in range(max_new_tokens):
        logits = model.head.logits(model.body(batch).hidden[index, used - 1])
        best, token = logits.float().log_softmax(-1).max(-1)
        token = torch.where(ended, eos, token)
        scores = scores + torch.where(ended, 0, best)
        answers.append(token)
        ended = ended | (token == eos)
        if bool(ended.all()):
            break
        last = index, used - 1
        added = {
            "input_ids": token,
            "position_ids": batch.position_ids[last] + 1,
            "document_ids": torch.ones_like(batch.document_ids[last]),
            "branch_ids": batch.branch_ids[last],
        }
        place = index, used
        batch = batch.replace(
            **{name: getattr(batch, name).index_put(place, value) for name, value in added.items()}
        )
        used = used + 1
    return torch.stack(answers, 1), scores
