"""What the layers of a forward share is built once, from that forward's ids, and dies with it."""

import gc
import weakref

import pytest
import tiny_models
import torch
from tiny_models import document, pack

from molmo_ds.batch import Carry
from molmo_ds.model import decoder
from molmo_ds.ops import cpu_library
from molmo_ds.ops.tree_attention import mask_blocks, panels


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was built."""
    names: list[str] = []
    for module, name in (
        (decoder, "attention_plan"),
        (decoder, "rope_table"),
        (panels, "of_ids"),
        (mask_blocks, "cut"),
    ):
        made = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *x, name=name, made=made: (names.append(name), made(*x))[1]
        )
    return names


@pytest.mark.parametrize("checkpointing", ["none", "full", "one_in_two", "offload"])
def test_a_forward_builds_one_plan_and_one_table(built: list[str], checkpointing: str) -> None:
    model = tiny_models.model(num_hidden_layers=3, checkpointing=checkpointing)
    sums = model(pack([[document(2, [7, 5])]]))
    assert sorted(built) == ["attention_plan", "rope_table"]
    (sums[0] + sums[1]).backward()
    assert len(built) == 2, "what is recomputed builds nothing"


@pytest.mark.parametrize("kernels", [True, False])
def test_long_sequences_are_cut_into_blocks_once(
    built: list[str], kernels: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(cpu_library, "load", lambda: None)
    elif cpu_library.load() is None:
        pytest.skip("no g++")
    model = tiny_models.model(num_hidden_layers=3, max_position_embeddings=400)
    sums = model(pack([[document(2, [150, 100])]]))
    (sums[0] + sums[1]).backward()
    assert sorted(built) == sorted(["attention_plan", "of_ids" if kernels else "cut", "rope_table"])


@pytest.mark.parametrize("which", ["document_ids", "branch_ids", "position_ids"])
def test_ids_changed_in_place_are_seen(built: list[str], which: str) -> None:
    model = tiny_models.model(num_hidden_layers=2)
    batch = pack([[document(2, [7, 5])]])
    first = model.hidden(batch)
    getattr(batch, which).mul_(0)
    fresh = batch.replace(**{which: getattr(batch, which).clone()})
    changed = model.hidden(batch)
    assert not torch.equal(changed, first) and torch.equal(changed, model.hidden(fresh))
    assert built.count("attention_plan") == built.count("rope_table") == 3


def test_what_is_carried_is_used_and_not_built_again(built: list[str]) -> None:
    model = tiny_models.model(num_hidden_layers=2)
    first, second = model.layers
    batch = pack([[document(2, [7, 5])]])
    x = model.embed(Carry.of(batch)._replace(image_features=torch.zeros(8, 32)))
    x = first(x)
    assert second(x).shared is x.shared and len(built) == 2
    other = second(x._replace(shared=None))
    assert torch.equal(other.hidden, second(x).hidden) and len(built) == 4


def test_it_dies_with_the_forward_at_once() -> None:
    gc.disable()  # nothing may wait for the collector: a plan holds a mask of B * T * T numbers
    try:
        model = tiny_models.model(num_hidden_layers=2)
        batch = pack([[document(2, [7, 5])]])
        body = model.body(batch)
        mask = weakref.ref(body.shared.plan.mask)
        assert mask() is not None
        sums = model.head(body)
        del body
        assert mask() is not None, "the backward pass needs it"
        (sums[0] + sums[1]).backward()
        del sums
        assert mask() is None
    finally:
        gc.enable()
