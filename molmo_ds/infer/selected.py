"""Answers of HeMolmo, greedily and without a cache: positions of its picks are no places that a cache could count by.

Shapes: B rows, T tokens, L new tokens.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from molmo_ds.batch import PER_TOKEN, SelectionBatch
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
    longer = {name: F.pad(getattr(prompts, name), (0, max_new_tokens)) for name in PER_TOKEN}
    used = (prompts.document_ids != 0).sum(1)
    index = torch.arange(rows, device=used.device)
    answers = []
    scores = torch.zeros(rows, device=used.device)
    ended = torch.zeros(rows, dtype=torch.bool, device=used.device)
    moved = prompts.image_positions
    moved = torch.where(moved >= 0, moved + moved // tokens * max_new_tokens, -1)
    for _ in range(max_new_tokens):
        batch = prompts.replace(**longer, image_positions=moved)
        logits = model.head.logits(model.body(batch).hidden[index, used - 1])
        best, token = logits.float().log_softmax(-1).max(-1)
        token = torch.where(ended, eos, token)
        scores = scores + torch.where(ended, 0, best)
        answers.append(token)
        ended = ended | (token == eos)
        if bool(ended.all()):
            break
        longer = {name: tensor.clone() for name, tensor in longer.items()}
        longer["input_ids"][index, used] = token
        longer["position_ids"][index, used] = longer["position_ids"][index, used - 1] + 1
        longer["document_ids"][index, used] = 1
        longer["branch_ids"][index, used] = longer["branch_ids"][index, used - 1]
        used = used + 1
    return torch.stack(answers, 1), scores
