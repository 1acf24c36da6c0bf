"""ZeRO-3 without the hooks that gather nothing: fewer calls on the host, the same numbers but for rounding.

The hooks' own nodes in autograd's graph decide in which order the gradients of a branch are added.
"""

from unittest import mock

import pytest
import torch

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, deepspeed_0_19
from molmo_ds.engine.launch import World
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks

STEPS = 2


def train(world: World, config: RunConfig) -> dict[bool, tuple]:
    """(log, weights, hooks of modules with weights of their own, of the others) with and without the change."""
    out = {}
    for lighter in (False, True):
        untouched = mock.patch.object(deepspeed_0_19, "lighten_hooks", lambda engine: None)
        if lighter:
            engine = build_engine(config, world)
        else:
            with untouched:
                engine = build_engine(config, world)
        hooks = {True: 0, False: 0}
        for name, module in engine.model.named_modules():
            owns = bool(list(module.parameters(recurse=False)))
            count = len(module._forward_hooks) + len(module._forward_pre_hooks)
            hooks[owns] += count if name else 0
        log = []
        for step in range(1, STEPS + 1):
            batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            log.append(engine.train_step(batches))
        # a module that reads the weights of another would need its hooks
        assert not any(list(module.ds_external_parameters()) for module in engine.model.modules())
        out[lighter] = log, dict(engine.full_state()), hooks[True], hooks[False]
    return out


@pytest.mark.parametrize("recomputed", ["none", "full"])
def test_the_same_numbers_with_fewer_hooks(recomputed: str) -> None:
    config = synthetic.config(
        strategy="ds_configs/zero3.json", micro_batch=4, activation_checkpointing=recomputed
    )
    before, after = run_ranks(train, 1, config)[0].values()
    for values, expected in zip(after[0], before[0], strict=True):
        assert values == pytest.approx(expected, rel=1e-6)
    for name, weight in after[1].items():
        torch.testing.assert_close(weight, before[1][name], atol=2e-7, rtol=1e-6, msg=name)
    assert after[2] == before[2] > 0
    assert before[3] > 0 == after[3]
