"""What a Batch holds is declared once: all of it is packed, padded, cut, dealt and sent by that."""

import pickle
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from molmo_ds.batch import (
    KINDS,
    LEFT_OUT,
    MARKS,
    PER_CROP,
    PER_TOKEN,
    PER_WINDOW,
    Batch,
    Carry,
    Contents,
    Sample,
    SelectionBatch,
)
from molmo_ds.data.order.packing import collate
from molmo_ds.engine.parallel.sequence import part
from molmo_ds.engine.shares.picture_shares import Deal
from molmo_ds.engine.stage_wire import Wire
from molmo_ds.infer import prefill
from molmo_ds.infer.question import Question
from molmo_ds.testing.text_sample import text_sample

OTHERS = [name for name in KINDS if name not in ("document_ids", "windows", "image_positions")]
LENGTH = 10


def numbered(tensor: Tensor, first: int) -> Tensor:
    """A tensor of the same shape and type that holds first, first + 1, ..."""
    count = tensor.numel()
    return torch.arange(first, first + count).reshape(tensor.shape).to(tensor.dtype)


def sample(tokens: int, crops: int, first: int) -> Sample:
    """Every tensor of the table holds numbers of its own; each crop has a window of all its patches."""
    made = replace(
        text_sample(torch.zeros(tokens, dtype=torch.int64)),
        images=torch.zeros(crops, 2, 2, 3, dtype=torch.uint8),
        image_masks=torch.zeros(crops, 4),
        windows=torch.arange(4 * crops).view(crops, 4),
        image_positions=torch.arange(crops),
    )
    own = {name: numbered(getattr(made, name), first + i) for i, name in enumerate(OTHERS)}
    return replace(made, **own)


@pytest.fixture
def samples() -> list[Sample]:
    return [sample(4, 2, 1), sample(3, 0, 20), sample(5, 1, 40)]


@pytest.fixture
def batch(samples: list[Sample]) -> Batch:
    return collate([samples[:2], samples[2:]], LENGTH)


def of(samples: list[Sample], name: str) -> list[Tensor]:
    return [getattr(one, name) for one in samples]


def test_the_table_holds_what_a_batch_has() -> None:
    of_batch = [field.name for field in fields(Batch)]
    assert set(of_batch) - set(KINDS) == {"learnt_rows"}
    assert {field.name for field in fields(Contents)} == set(KINDS) - {"document_ids"}
    assert {*PER_TOKEN, *PER_CROP, *PER_WINDOW} == set(KINDS)
    assert {field.name for field in fields(SelectionBatch)} <= set(Carry._fields)


@pytest.mark.parametrize("name", OTHERS)
def test_joined(name: str, samples: list[Sample], batch: Batch) -> None:
    got = getattr(batch, name)
    assert got.dtype == getattr(samples[0], name).dtype
    if name not in PER_TOKEN:
        assert torch.equal(got, torch.cat(of(samples, name)))
        return
    rows = [torch.cat(of(samples[:2], name)), getattr(samples[2], name)]
    for row, expected in zip(got, rows, strict=True):
        assert torch.equal(row[: len(expected)], expected) and not row[len(expected) :].any()


def test_padded(batch: Batch) -> None:
    longer = batch.padded(LENGTH + 3, 5, 6)
    for name, kind in KINDS.items():
        got = getattr(longer, name)
        before = getattr(batch, name)
        count = len(before) if name not in PER_TOKEN else LENGTH
        kept, more = (
            (got[:, :count], got[:, count:]) if name in PER_TOKEN else (got[:count], got[count:])
        )
        assert more.numel() and (more == kind.padding).all(), name
        assert name == "image_positions" or torch.equal(kept, before), name


@pytest.mark.parametrize("size", [2, 3])
def test_cut_and_dealt(batch: Batch, size: int) -> None:
    parts = [part(batch, place, size) for place in range(size)]
    for name in PER_TOKEN:
        whole = torch.cat([getattr(one, name) for one in parts], 1)
        assert torch.equal(whole[:, :LENGTH], getattr(batch, name)), name
        assert not whole[:, LENGTH:].any(), name
    dealt = Deal(batch, size)
    for name in (*PER_CROP, *PER_WINDOW):
        owned = dealt.crops if name in PER_CROP else dealt.rows
        for mine, one in zip(owned, parts, strict=True):
            got = getattr(one, name)
            moved = name in ("windows", "image_positions")
            assert moved or torch.equal(got[: len(mine)], getattr(batch, name)[mine])
            assert (got[len(mine) :] == KINDS[name].padding).all(), name


def test_sent(batch: Batch) -> None:
    x = Carry.of(batch)
    sent = pickle.loads(pickle.dumps(batch))
    received = Wire().unpack(Wire().pack(x))
    for name in KINDS:
        for got in (sent, x, received):
            assert torch.equal(getattr(got, name), getattr(batch, name)), name


@pytest.mark.parametrize("name", LEFT_OUT)
def test_left_out(name: str, samples: list[Sample], batch: Batch) -> None:
    for whole in (samples[0], batch):
        given = {key: value for key, value in vars(whole).items() if key != name}
        got = getattr(type(whole)(**given), name)
        assert got.dtype == KINDS[name].left_out and (got == KINDS[name].padding).all()
        assert got.shape == getattr(whole, name).shape


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(LEFT_OUT) - {"document_ids"}))
def test_what_must_be_given(name: str, samples: list[Sample]) -> None:
    given = {key: value for key, value in vars(samples[0]).items() if key != name}
    with pytest.raises(TypeError, match=name):
        Sample(**given)


@pytest.mark.parametrize("name", MARKS)
def test_marks_of_questions_are_those_of_their_prompts(name: str) -> None:
    branches = torch.tensor([0, 0, 1, 1, 1], dtype=torch.int32)
    prompts = [replace(sample(5, 1, first), branch_ids=branches) for first in (1, 1)]
    marks = torch.tensor([7, 7, 1, 2, 3], dtype=KINDS[name].left_out)
    prompts[1] = replace(prompts[1], **{name: marks})
    prompts[0] = replace(prompts[0], **{name: torch.where(branches > 0, marks + 10, marks)})
    questions = [
        Question(name=str(i), prompt=prompt, begun=(5,) * i) for i, prompt in enumerate(prompts)
    ]
    tree = prefill.tree(questions)
    assert getattr(tree, name).tolist() == [7, 7, 11, 12, 13, 1, 2, 3, 0]
    assert prefill.key(questions[0]) == prefill.key(questions[1])
    other = replace(questions[1], prompt=replace(prompts[1], **{name: marks + 1}))
    assert prefill.key(questions[0]) != prefill.key(other)
