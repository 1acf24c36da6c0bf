"""Which samples share a sequence, and the tensors that come of it."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from molmo_ds.batch import PER_CROP, PER_TOKEN, PER_WINDOW, Batch, Sample, last_tokens
from molmo_ds.config import DataConfig
from molmo_ds.data.order.knapsack import most_valuable
from molmo_ds.data.order.packing import SLACK, Budget, choose, collate, merge, row
from molmo_ds.testing.scripts import load
from molmo_ds.testing.text_sample import text_sample

bench_stream = load("tools/bench", "bench_stream")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(0, 4)).map(list), min_size=1, max_size=9),
    st.integers(60, 130),
    st.integers(4, 9),
)
def test_choice_is_the_best_that_holds_the_oldest(
    sizes: list[list[int]], tokens: int, crops: int
) -> None:
    chosen = choose(sizes, tokens, crops)
    assert chosen[0] == 0 and chosen == sorted(set(chosen))

    def total(subset: tuple[int, ...]) -> tuple[int, int]:
        return sum(sizes[i][0] for i in subset), sum(sizes[i][1] for i in subset)

    rest = range(1, len(sizes))
    subsets = [(0, *s) for n in range(len(sizes)) for s in itertools.combinations(rest, n)]
    allowed = [total(s)[0] for s in subsets if total(s)[0] <= tokens and total(s)[1] <= crops]
    assert total(chosen)[0] <= tokens and total(chosen)[1] <= crops
    assert tokens < SLACK  # so the goal is an exactly full sequence, and brute force has to agree
    assert total(chosen)[0] == max(allowed)


def test_older_samples_go_first() -> None:
    assert choose([[50, 1]] * 6, 100, 9) == [0, 1]
    assert choose([[40, 0], [70, 0], [60, 0], [60, 0]], 100, 9) == [0, 2]


@pytest.mark.parametrize("tokens", [1, 511, 1023, 1501, 2305, 2599])
def test_two_budgets_are_kept_at_any_length(tokens: int) -> None:
    """Also where units of tokens / 512 do not divide it: 1,501 tokens hold no 1,502."""
    rng = np.random.RandomState(tokens)
    for crops in (1, 7, 24):
        for _ in range(60):
            count = rng.randint(1, 12)
            sizes = [
                [rng.randint(1, tokens // 2 + 2), rng.randint(crops + 1)] for _ in range(count)
            ]
            for with_oldest in (False, True):
                chosen = most_valuable(sizes, tokens, crops, 30.0, with_oldest)
                assert chosen and (0 in chosen or not with_oldest)
                assert sum(sizes[i][0] for i in chosen) <= tokens
                assert sum(sizes[i][1] for i in chosen) <= crops


def test_fill_and_wait_at_the_mixture_of_the_facts() -> None:
    sizes = bench_stream.mixture(6000)
    tokens, crops = np.mean(sizes, axis=0)
    assert abs(tokens - 1082) < 40 and abs(crops - 8.2) < 0.2
    row = bench_stream.pack_all(sizes, 4096, round(1.25 * 4096 * crops / tokens))
    assert row["token fill"] >= 0.99
    assert row["oldest wait"] <= 500


def sample(length: int, crops: int, value: int) -> Sample:
    positions = torch.arange(crops * 2)
    positions[2 * crops - 1 :] = -1
    return replace(
        text_sample(torch.full((length,), value)),
        labels=torch.full((length,), value + 1),
        loss_weights=torch.full((length,), value / 10),
        branch_ids=torch.full((length,), value % 3, dtype=torch.int32),
        image_ids=torch.full((length,), value % 2, dtype=torch.int32),
        images=torch.full((crops, 4, 4, 3), value, dtype=torch.uint8),
        image_masks=torch.full((crops, 9), float(value)),
        windows=torch.arange(crops * 2)[:, None] // 2 * 9 + torch.tensor([0, 1, 3, 4]),
        image_positions=positions,
    )


def check_shapes(batch: Batch, rows: int, length: int, crops: int, windows: int) -> None:
    for name in PER_TOKEN:
        assert getattr(batch, name).shape == (rows, length), name
    assert {len(getattr(batch, name)) for name in PER_CROP} == {crops}
    assert {len(getattr(batch, name)) for name in PER_WINDOW} == {windows}
    i64 = torch.int64
    i32 = torch.int32
    f32 = torch.float32
    kinds = {
        "input_ids": i64,
        "labels": i64,
        "loss_weights": f32,
        "position_ids": i64,
        "document_ids": i32,
        "branch_ids": i32,
        "image_ids": i32,
        "images": torch.uint8,
        "image_masks": f32,
        "windows": i64,
        "image_positions": i64,
        "learnt_rows": i64,
    }
    assert {name: getattr(batch, name).dtype for name in kinds} == kinds


def test_collate_places_every_token_and_patch() -> None:
    packs = [[sample(5, 2, 1), sample(3, 0, 2)], [sample(4, 1, 3)]]
    batch = collate(packs, 10)
    check_shapes(batch, 2, 10, 3, 6)
    assert batch.input_ids.tolist() == [[1] * 5 + [2] * 3 + [0] * 2, [3] * 4 + [0] * 6]
    assert batch.labels.tolist() == [[2] * 5 + [3] * 3 + [0] * 2, [4] * 4 + [0] * 6]
    assert batch.document_ids.tolist() == [[1] * 5 + [2] * 3 + [0] * 2, [1] * 4 + [0] * 6]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 0, 0], [0, 1, 2, 3] + [0] * 6]
    assert batch.branch_ids.tolist() == [[1] * 5 + [2] * 3 + [0] * 2, [0] * 10]
    assert torch.equal(batch.loss_weights > 0, batch.document_ids > 0)
    assert batch.image_ids.tolist() == [[1] * 5 + [0] * 5, [1] * 4 + [0] * 6]
    assert batch.image_positions.tolist() == [0, 1, 2, -1, 10, -1]
    assert batch.windows[:, 0].tolist() == [0, 0, 9, 9, 18, 18]
    assert last_tokens(batch).tolist() == [1, 2, 10]
    assert batch.images[:, 0, 0, 0].tolist() == [1, 1, 3] and batch.image_masks[:, 0].tolist() == [
        1,
        1,
        3,
    ]


def test_second_picture_of_a_row_moves_behind_the_first_document() -> None:
    batch = collate([[sample(5, 1, 1), sample(5, 1, 2)]], 12)
    assert batch.image_positions.tolist() == [0, -1, 5, -1]
    assert batch.windows.tolist() == [[0, 1, 3, 4]] * 2 + [[9, 10, 12, 13]] * 2


def test_learnt_rows() -> None:
    one = sample(5, 0, 1)
    one.loss_weights[[0, 3]] = 0
    batch = collate([[one], [sample(2, 0, 2)]], 6)
    assert batch.learnt_rows.tolist() == [1, 2, 4, 6, 7]
    assert batch.weighted(0.0).learnt_rows.tolist() == [1, 2, 4, 6, 7]
    nothing = batch.reweighted(batch.loss_weights * 0)
    assert nothing.learnt_rows.tolist() == [0] and nothing.loss_weights[0, 0] == 0


def test_rows_of_different_length_merge_as_if_made_together() -> None:
    packs = [[sample(5, 2, 1)], [sample(4, 1, 3)], [sample(2, 0, 4)]]
    merged = merge([row(packs[0], 5), row(packs[1], 8), row(packs[2], 2)])
    for got, expected in zip(merged.tensors(), collate(packs, 8).tensors()):
        assert torch.equal(got, expected)


def test_a_batch_without_pictures_carries_one_blank_crop() -> None:
    batch = collate([[sample(3, 0, 1)], [sample(2, 0, 2)]], 4)
    check_shapes(batch, 2, 4, 1, 1)
    blank: tuple[Tensor, ...] = (
        batch.images,
        batch.image_masks,
        batch.windows,
        batch.image_positions,
    )
    assert [tensor.unique().tolist() for tensor in blank] == [[0], [0], [-1], [-1]]


def test_padded_as_if_packed_into_longer_rows() -> None:
    packs = [[sample(5, 2, 1)], [sample(4, 1, 3)], [sample(2, 0, 4)]]
    longer = collate(packs, 8).padded(11, 5, 8, rows=20)
    expected = collate(packs, 11)
    check_shapes(longer, 3, 11, 5, 8)
    for got, tensor in zip(longer.tensors()[:-1], expected.tensors()):
        assert torch.equal(got[: len(tensor)], tensor)
    learnt = len(expected.learnt_rows)
    assert (
        torch.equal(longer.learnt_rows[:learnt], expected.learnt_rows)
        and len(longer.learnt_rows) == 20
    )
    assert learnt < 20 and not longer.loss_weights.take(longer.learnt_rows[learnt:]).any()
    blank: tuple[Tensor, ...] = (
        longer.images[3:],
        longer.image_masks[3:],
        longer.windows[6:],
        longer.image_positions[6:],
    )
    assert [tensor.unique().tolist() for tensor in blank] == [[0], [0], [-1], [-1]]


def test_padded_modes_choose_from_one_sample() -> None:
    assert Budget.of(DataConfig(packing="pack", pool_size=48)).pool_size == 48
    assert Budget.of(DataConfig(packing="to_128", pool_size=48)).pool_size == 1
