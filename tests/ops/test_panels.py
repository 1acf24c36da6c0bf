"""The panels of a plan beside the whole mask: every query sees the very keys that the rule says."""

import pytest
import torch
from torch import Tensor

from molmo_ds.ops.tree_attention import panels, visible
from molmo_ds.ops.tree_attention.panels import KEYS, QUERIES, Panels


def mask(found: Panels, rows: int, tokens: int) -> Tensor:
    """bool [B, T, T], what is listed."""
    blocks = -(-tokens // QUERIES)
    seen = torch.zeros(rows, blocks * QUERIES, -(-tokens // KEYS) * KEYS, dtype=torch.bool)
    assert found.begins.shape == (rows, blocks + 1)
    for row, begins in enumerate(found.begins.tolist()):
        for block, (begin, end) in enumerate(zip(begins, begins[1:], strict=False)):
            numbers = found.panels[begin:end, 0].tolist()
            assert numbers == sorted(set(numbers)), "each once, in order"
            for number, words in found.panels[begin:end].tolist():
                own = torch.full((QUERIES,), -1, dtype=torch.int32)
                if words >= 0:
                    own = found.words[words : words + QUERIES]
                    assert own.any(), "a panel that nobody sees is not listed"
                bits = (own[:, None] >> torch.arange(KEYS)) & 1
                own_rows = slice(block * QUERIES, (block + 1) * QUERIES)
                seen[row, own_rows, number * KEYS : (number + 1) * KEYS] = bits.bool()
    assert not seen[:, :, tokens:].any(), "no key after the last"
    return seen[:, :tokens, :tokens]


def trees(tokens: int, draw: torch.Generator) -> list[Tensor]:
    """Random ids as the collator writes them: documents of a prefix and branches, images, padding at the end."""
    documents, branches, images = (torch.zeros(tokens, dtype=torch.int32) for _ in range(3))
    at, number = 0, 0
    while at < tokens - 20:
        number += 1
        length = int(torch.randint(1, 200, (), generator=draw))
        prefix = int(torch.randint(0, length, (), generator=draw))
        step = int(torch.randint(1, 60, (), generator=draw))
        end = min(at + length, tokens)
        documents[at:end] = number
        place = torch.arange(end - at)
        branches[at:end] = torch.where(place < prefix, 0, 1 + (place - prefix) // step).int()
        images[at:end] = torch.where(place % 40 < 30, 1 + place // 40, 0).int()
        at = end + int(torch.randint(0, 2, (), generator=draw)) * 300
    return [documents, branches, images]


@pytest.mark.parametrize("tokens", [1, 31, 33, 48, 97, 640, 1021])
def test_of_trees(tokens: int) -> None:
    draw = torch.Generator().manual_seed(tokens)
    rows = [trees(tokens, draw) for _ in range(3)]
    ids = [torch.stack(x) for x in zip(*rows, strict=True)]
    for images in (None, ids[2]):
        found = panels.of_ids(ids[0], ids[1], images)
        assert torch.equal(mask(found, 3, tokens), visible(ids[0], ids[1], images))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("most", [1, 2, 3, 100])
def test_of_ids_in_any_order(most: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(most)
    ids = [torch.randint(0, most, (2, 250), generator=draw, dtype=dtype) for _ in range(3)]
    ids += [x.sort().values for x in ids]
    for a in (0, 3):
        for images in (None, ids[2], ids[5]):
            found = panels.of_ids(ids[a], ids[a + 1], images)
            assert torch.equal(mask(found, 2, 250), visible(ids[a], ids[a + 1], images))


def test_whatever_the_default_device() -> None:
    ids = torch.arange(300)[None] // 100
    wanted = panels.of_ids(ids, ids, None)
    with torch.device("meta"):
        found = panels.of_ids(ids, ids, None)
    assert all(
        torch.equal(a, b) for a, b in zip(vars(found).values(), vars(wanted).values(), strict=True)
    )


def test_a_long_row_has_words_at_its_diagonal_only() -> None:
    tokens = 20_000
    documents = torch.ones(1, tokens, dtype=torch.int32)
    branches = torch.zeros(1, tokens, dtype=torch.int32)
    branches[:, 9_600:] = 1 + torch.arange(tokens - 9_600).int() // 960
    found = panels.of_ids(documents, branches, None)
    # three panels touch a block's diagonal, or two
    assert len(found.words) <= 3 * (tokens + QUERIES)
    assert len(found.panels) <= 2 * visible_pairs(documents, branches) / (QUERIES * KEYS)


def visible_pairs(documents: Tensor, branches: Tensor) -> int:
    """Of a query and a key, where ids ascend and all is one document."""
    prefix = int((branches == 0).sum())
    pairs = prefix * (prefix + 1) // 2
    for length in torch.unique_consecutive(branches[0, prefix:], return_counts=True)[1].tolist():
        pairs += length * prefix + length * (length + 1) // 2
    return pairs
