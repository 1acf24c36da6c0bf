"""ZeRO-3 with lighter hooks: fewer calls on the host, the same numbers but for rounding.

The hooks' own nodes in autograd's graph decide in which order the gradients of a branch are added.
"""

from collections import Counter
from unittest import mock

import pytest
import torch
from torch import nn

from molmo_ds.config import RunConfig
from molmo_ds.engine import build_engine, zero3_hooks
from molmo_ds.engine.launch import World
from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.model.vision import VisionLayer
from molmo_ds.testing import synthetic
from molmo_ds.testing.ranks import run_ranks

STEPS = 2
LAYERS = (DecoderLayer, VisionLayer)
HOOKS = 4  # of DeepSpeed on a module


def hooks(model: nn.Module) -> Counter[str]:
    """How many there are, by what they are on."""
    found: Counter[str] = Counter()
    inside = {id(x) for y in model.modules() if isinstance(y, LAYERS) for x in y.modules()}
    for name, module in model.named_modules():
        owns = bool(list(module.parameters(recurse=False)))
        where = "owners" if owns else "others"
        if isinstance(module, LAYERS):
            where = "layers"
        elif id(module) in inside:
            where = "inside"
        found[where] += len(module._forward_hooks) + len(module._forward_pre_hooks) if name else 0
    return found


def train(world: World, config: RunConfig) -> dict[bool, tuple]:
    """(log, weights, hooks, layers released in the last backward pass) with and without the change."""
    out = {}
    for lighter in (False, True):
        untouched = mock.patch.object(zero3_hooks, "lighten", lambda *_, **__: None)
        if lighter:
            engine = build_engine(config, world)
        else:
            with untouched:
                engine = build_engine(config, world)
        offload = engine.engine.optimizer.parameter_offload
        log = []
        for step in range(1, STEPS + 1):
            batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
            # what is left after a backward pass is released at its end, which holds memory until then
            with mock.patch.object(
                offload,
                "post_sub_module_backward_function",
                wraps=offload.post_sub_module_backward_function,
            ) as released:
                log.append(engine.train_step(batches))
        layers = {call.args[0] for call in released.call_args_list if type(call.args[0]) in LAYERS}
        # a module that reads the weights of another would need its hooks
        assert not any(list(module.ds_external_parameters()) for module in engine.model.modules())
        out[lighter] = log, dict(engine.full_state()), hooks(engine.model), len(layers)
    return out


@pytest.mark.parametrize("recomputed", ["none", "full"])
def test_the_same_numbers_with_fewer_hooks(recomputed: str) -> None:
    config = synthetic.config(
        strategy="ds_configs/zero3.json", micro_batch=2, activation_checkpointing=recomputed
    )
    for before, after in (rank.values() for rank in run_ranks(train, 2, config)):
        for values, expected in zip(after[0], before[0], strict=True):
            assert values == pytest.approx(expected, rel=1e-6)
        for name, weight in after[1].items():
            torch.testing.assert_close(weight, before[1][name], atol=2e-7, rtol=1e-6, msg=name)
        model = config.model
        layers = model.text.num_hidden_layers + model.vision.num_hidden_layers
        assert before[2]["inside"] > 0 and before[2]["others"] > 0
        assert after[2] == Counter(layers=HOOKS * layers, owners=before[2]["owners"])
        assert after[3] == layers
