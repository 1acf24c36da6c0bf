"""What the layers of a forward share is built once, anew where ids differ, and dies with them."""

import gc
import weakref

import pytest
import tiny_models
import torch
from tiny_models import document, pack

from molmo_ds.model import decoder
from molmo_ds.model.decoder import once


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was built."""
    names: list[str] = []
    for name in ("attention_plan", "rope_table"):
        made = getattr(decoder, name)
        monkeypatch.setattr(decoder, name, lambda *x, name=name, made=made: (names.append(name), made(*x))[1])
    return names


def test_a_forward_builds_one_plan_and_one_table(built: list[str]) -> None:
    model, batch = tiny_models.model(num_hidden_layers=3), pack([[document(2, [7, 5])]])
    first = model.hidden(batch)
    assert sorted(built) == ["attention_plan", "rope_table"]
    again = batch.replace(
        document_ids=batch.document_ids.detach(), position_ids=batch.position_ids.view_as(batch.position_ids)
    )
    assert torch.equal(model.hidden(again), first) and len(built) == 2, "other tensors over the same storage"
    with torch.inference_mode():
        assert torch.equal(model.hidden(batch), first) and len(built) == 2


@pytest.mark.parametrize("which", ["document_ids", "branch_ids"])
def test_ids_changed_in_place_are_seen(built: list[str], which: str) -> None:
    model, batch = tiny_models.model(num_hidden_layers=2), pack([[document(2, [7, 5])]])
    first = model.hidden(batch)
    getattr(batch, which).mul_(0)
    fresh = batch.replace(document_ids=batch.document_ids.clone())
    changed = model.hidden(batch)
    assert not torch.equal(changed, first) and torch.equal(changed, model.hidden(fresh))
    assert built.count("attention_plan") == 3


def test_each_part_of_a_storage_is_its_own() -> None:
    both = torch.arange(6).view(2, 3)
    calls: list[list[int]] = []

    def build(x: torch.Tensor) -> int:
        calls.append(x.tolist())
        return int(x.sum())

    for _ in range(2):
        assert [once("sum", build, row) for row in both] == [3, 12] and once("sum", build, both[:, 0]) == 3
    assert calls == [[0, 1, 2], [3, 4, 5], [0, 3]]
    assert once("other", build, both[0]) == 3 and len(calls) == 4


def test_it_dies_with_the_ids_at_once() -> None:
    gc.disable()  # nothing may wait for the collector: a plan holds a mask of B * T * T numbers
    try:
        batch = pack([[document(2, [7, 5])]])
        plan = weakref.ref(decoder.Core().plan(batch.document_ids, batch.branch_ids, torch.float32))
        alias = batch.document_ids.detach()
        del batch
        assert plan() is not None
        del alias
        assert plan() is None
    finally:
        gc.enable()
