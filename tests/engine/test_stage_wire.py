"""A Carry comes back from what a pipeline sends, whose floats all have a gradient, and from ZeRO-3's hooks."""

from dataclasses import dataclass

import pytest
import torch
from deepspeed.runtime.zero.utils import apply_to_tensors_only
from torch import Tensor

from molmo_ds.batch import Batch, Carry, Shared
from molmo_ds.data.order.packing import merge
from molmo_ds.engine.stage_wire import Wire
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic


@pytest.fixture
def batch() -> Batch:
    return merge([synthetic.sequence(1, lane) for lane in (0, 7)])


def test_stages_of_a_row_each(batch: Batch) -> None:
    model = Molmo(synthetic.MODEL)
    model.reset_parameters(0)
    x = Carry.of(batch)
    ends = {name: (Wire(), Wire()) for name in model.rows}
    for step in range(2):  # the second time without reading the layouts
        x = Carry.of(batch)
        for name in model.rows:
            sent = ends[name][0].pack(x)
            floats = [t for t in sent if t.is_floating_point()]
            assert all(t.requires_grad for t in floats) and bool(floats) == (name != model.rows[0])
            assert all(t.is_contiguous() for t in sent)
            taken = ends[name][1].unpack(tuple(t.clone() if step == 0 else t for t in sent))
            for field, before, after in zip(x._fields, x, taken):
                if field == "shared":
                    assert after is None
                elif field == "features":
                    assert len(before) == len(after) and all(map(torch.equal, before, after))
                else:
                    assert (before is None) == (after is None), field
                    assert before is None or (
                        before.dtype == after.dtype and torch.equal(before, after)
                    ), field
            x = model.get_submodule(name)(taken)
    for ours, whole in zip(x, model(batch), strict=True):
        assert torch.equal(ours, whole)


def test_another_layout_is_no_surprise(batch: Batch) -> None:
    wire = Wire()
    wire.pack(Carry.of(batch))
    with pytest.raises(AssertionError, match="what flows between two stages has changed"):
        wire.pack(Carry.of(batch)._replace(labels=None))


def test_hooks_of_zero3_reach_the_tensors_of_a_named_tuple_and_no_others(batch: Batch) -> None:
    """Which `Carry` relies on."""
    shared = Shared(None, ((torch.ones(1), torch.ones(1)),))
    carry = Carry.of(batch)._replace(
        hidden=torch.ones(2), features=(torch.ones(3), torch.ones(4)), shared=shared
    )
    touched: list[Tensor] = []

    def hook(x: Tensor) -> Tensor:
        touched.append(x)
        return x.detach()

    out = apply_to_tensors_only(hook, (carry,))[0]
    assert (
        type(out) is Carry
        and out.shared is shared
        and out.image_features is None
        and len(out.features) == 2
    )
    assert len(touched) == len(vars(batch)) + 3

    @dataclass(frozen=True)
    class Frozen:
        hidden: Tensor

    frozen = Frozen(torch.ones(2))
    assert (
        apply_to_tensors_only(hook, (frozen,))[0] is frozen and len(touched) == len(vars(batch)) + 3
    )
