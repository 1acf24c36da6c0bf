"""Pairs that see each other, counted without a mask, against the mask itself."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from molmo_ds.engine import loss_scale
from molmo_ds.ops.tree_attention.pairs import visible_pairs
from molmo_ds.ops.tree_attention.reference import visible
from molmo_ds.testing import synthetic


def layout(rng: random.Random, length: int) -> tuple[list[int], list[int], list[int]]:
    """Documents, branches and pictures of a row: prefixes of 0 to 9 tokens, up to three branches, then padding."""
    documents: list[int] = []
    branches: list[int] = []
    pictures: list[int] = []
    document = 0
    while len(documents) < length - 3 and rng.random() < 0.95:
        document += 1
        prefix = rng.randint(0, 9)
        pictures += [rng.choice([0, 0, 1, 2]) for _ in range(prefix)]
        branches += [0] * prefix
        for branch in range(1, rng.randint(1, 4)):
            tokens = rng.randint(1, 6)
            branches += [branch] * tokens
            pictures += [0] * tokens
        documents += [document] * (len(branches) - len(documents))
    padding = [0] * length
    return tuple((ids + padding)[:length] for ids in (documents, branches, pictures))


def ids(seed: int) -> list[Tensor]:
    rng = random.Random(seed)
    length = rng.choice([7, 40, 97])
    rows = [layout(rng, length) for _ in range(rng.choice([1, 3]))]
    return [torch.tensor(one, dtype=torch.int32) for one in zip(*rows)]


@pytest.mark.parametrize("start", range(0, 100, 25))
def test_pairs_of_random_trees(start: int) -> None:
    for seed in range(start, start + 25):
        documents, branches, pictures = ids(seed)
        seen = visible(documents, branches, pictures) & (documents > 0)[:, :, None]
        assert visible_pairs(documents, branches, pictures) == seen.sum(), seed
        causal = visible(documents, branches) & (documents > 0)[:, :, None]
        assert visible_pairs(documents, branches) == causal.sum(), seed


@pytest.mark.parametrize("attention", ["causal", "image_tokens", "within_image"])
def test_a_step_counts_the_pairs_of_its_mask(attention: str) -> None:
    text = replace(synthetic.MODEL.text, image_attention=attention)
    model = replace(synthetic.MODEL, text=text)
    batches = [synthetic.sequence(0, lane) for lane in range(4)]
    batches = [
        batch.replace(image_ids=(batch.input_ids % 3 * (batch.branch_ids == 0)).int())
        for batch in batches
    ]
    _, counts = loss_scale.scale(batches, 1, None, torch.device("cpu"), model)
    wanted = 0
    for batch in batches:
        pictures = None if attention == "causal" else batch.image_ids
        seen = visible(batch.document_ids, batch.branch_ids, pictures)
        wanted += int((seen & (batch.document_ids > 0)[:, :, None]).sum())
    assert dict(zip(loss_scale.COUNTS, counts.tolist()))["visible_pairs"] == wanted
