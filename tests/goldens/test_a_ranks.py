"""The reference's batches on two ranks, under every strategy: its losses and the gradient of every parameter.

The two examples of a batch hold unlike numbers of crops and tokens, and before a picture the label is an image token,
beyond the words of the head.
"""

import math

import pytest
import torch
from golden_files import listed, model_kinds, read_json, read_tensors
from golden_models import read_batch, read_config, to_reference
from torch import Tensor

from molmo_ds.batch import PER_TOKEN, Batch, last_tokens, learnt_rows_of
from molmo_ds.config import ComponentConfig, OptimConfig, RunConfig
from molmo_ds.engine import build_engine
from molmo_ds.engine.launch import World
from molmo_ds.model.families import molmo_names
from molmo_ds.testing.oracle import fresh_groups
from molmo_ds.testing.ranks import run_ranks
from molmo_ds.weights import rename

# of one step of SGD, whose difference of weights is then the gradient with few digits lost
RATE = 64.0
DENSE = ["zero0", "zero1", "zero2", "zero3", "zero3_sp", "zero3_tp", "pipe_zero1"]
EXPERTS = ["zero2_ep", "zero3_ep", "zero2", "pipe_zero1", "zero3_sp"]
CASES = [
    (kind, name)
    for kind in model_kinds()
    for name in listed(f"A_model/{kind}/meta.json", "batches")
]


def example(batch: Batch, row: int) -> Batch:
    """One sequence of a batch with its own crops."""
    length = batch.input_ids.shape[1]
    mine = last_tokens(batch) // length == row
    patches = batch.image_masks.shape[1]
    whole = mine[batch.windows.clamp(min=0)[:, 0] // patches]
    positions = batch.image_positions[whole]
    first = (
        torch.where(mine, mine.cumsum(0) - 1, 0) * patches
    )  # patch of each crop in its new place
    windows = batch.windows[whole]
    crop = windows.clamp(min=0) // patches
    windows = torch.where(windows >= 0, first[crop] + windows % patches, -1)
    texts = {name: getattr(batch, name)[row : row + 1] for name in PER_TOKEN}
    alone = Batch(
        **texts,
        images=batch.images[mine],
        image_masks=batch.image_masks[mine],
        windows=windows,
        image_positions=torch.where(positions >= 0, positions - row * length, -1),
        learnt_rows=learnt_rows_of(texts["loss_weights"]),
    )
    return alone.padded(length, 1, 1)


def one_step(
    world: World, kind: str, name: str, strategies: list[str]
) -> dict[str, tuple[dict, dict[str, Tensor]] | str]:
    """(what the step logs, weights after it) under each strategy, or the sentence that refuses it."""
    component = ComponentConfig(lr=RATE, warmup_steps=0)
    optim = OptimConfig(
        name="sgd",
        connector=component,
        vision=component,
        text=component,
        max_grad_norm=0.0,
        freeze_embedding=False,
        z_loss=read_json(f"A_model/{kind}/meta.json")["z_loss_scale"],
    )
    model = read_config(kind)
    state = read_tensors(f"A_model/{kind}/state_dict.safetensors")
    start = dict(rename.to_ours(molmo_names.detect(model, state), state.__getitem__))
    batch, *_ = read_batch(kind, name)
    examples = [example(batch, row) for row in range(len(batch.input_ids))]
    if len(examples) % 2:
        examples.append(examples[0].reweighted(torch.zeros_like(examples[0].loss_weights)))
    rows = len(examples)
    out = {}
    for strategy in strategies:
        fresh_groups()
        config = RunConfig(
            model=model,
            optim=optim,
            strategy=f"ds_configs/{strategy}.json",
            global_batch=rows,
            max_steps=1000,
        )
        try:
            engine = build_engine(config, world)
        except ValueError as error:
            out[strategy] = str(error)
            continue
        engine.set_weights(lambda name, shape, first, last: start[name].reshape(-1)[first:last])
        share = rows // engine.data_size
        mine = examples[engine.data_rank * share : (engine.data_rank + 1) * share]
        out[strategy] = engine.train_step(mine), dict(engine.full_state())
    return out


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_losses_and_gradients_on_two_ranks(goldens, kind: str, name: str) -> None:
    batch, golden, meta = read_batch(kind, name)
    if not meta.get("grads"):
        assert float(batch.loss_weights.sum()) == 0, "a prompt has nothing to learn"
        return
    experts = read_config(kind).text.num_experts
    runs = run_ranks(one_step, 2, kind, name, EXPERTS if experts else DENSE, timeout=240)[0]
    state = read_tensors(f"A_model/{kind}/state_dict.safetensors")
    frozen = {key for key, grad in meta["grads"].items() if grad is None}
    total = math.sqrt(sum(grad["norm"] ** 2 for grad in meta["grads"].values() if grad is not None))
    for strategy, run in runs.items():
        if isinstance(run, str):  # heads or experts that two ranks cannot share
            assert strategy.endswith(("_sp", "_tp", "_ep")), run
            continue
        values, weights = run
        for key in ("ce_loss", "z_loss", "accuracy"):
            assert values[key] == pytest.approx(meta[key], rel=5e-6, abs=1e-9), (strategy, key)
        parts = [values[f"grad_norm/{part}"] for part in ("connector", "vision", "text")]
        assert math.hypot(*parts) == pytest.approx(total, rel=1e-5), strategy
        after = to_reference(kind, weights)
        for key, grad in meta["grads"].items():
            step = (state[key].double() - after[key].double()) / RATE
            if key in frozen:
                assert not step.any(), (strategy, key)
                continue
            # a weight of 1 and a step of 64 times its gradient: float32 leaves 1e-7 / 64 of the weight as noise
            noise = (
                1.2e-7
                * float(torch.maximum(state[key].abs(), after[key].abs()).double().norm())
                / RATE
            )
            assert float(step.norm()) == pytest.approx(grad["norm"], rel=1e-4, abs=noise + 1e-6), (
                strategy,
                key,
            )
            size = grad["norm"] / step.numel() ** 0.5
            values_here = step.flatten()[grad["idx"]].tolist()
            assert values_here == pytest.approx(
                grad["val"], rel=1e-4, abs=1e-4 * size + noise + 1e-6
            ), (strategy, key)
