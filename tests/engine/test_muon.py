"""Muon: its updates by the formula, two ranks and a resume on one beside one process, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from molmo_ds.config import OptimConfig, RunConfig
from molmo_ds.engine import build_engine, optim, optimizers
from molmo_ds.engine.fragments import Fragment
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import read_strategy
from molmo_ds.engine.strategy.refusals import refuse
from molmo_ds.model.molmo import Molmo, is_hidden_matrix
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import difference, plain
from molmo_ds.testing.ranks import run_ranks

STEPS = 4
RATE = 0.02


def run(precision: str = "fp32") -> RunConfig:
    """Rates that differ by component, of matrices and of the rest."""
    made = synthetic.adamw(
        strategy="ds_configs/zero0.json", max_steps=STEPS, precision=precision, global_batch=4
    )
    parts = {
        name: replace(getattr(made.optim, name), matrix_lr=rate)
        for name, rate in (("connector", 0.03), ("vision", 0.01), ("text", 0.02))
    }
    return replace(made, optim=replace(made.optim, name="muon", **parts))


def test_an_update_is_the_orthogonal_part_of_the_mean_gradient() -> None:
    """Five steps of the quintic iteration leave singular values between 0.68 and 1.14 (bf16: a little more)."""
    random = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(48, 12))
    model = torch.nn.Module()
    model.named_parameters = lambda: iter([("layers.0.mlp.up_proj.weight", weight)])
    settings = OptimConfig(name="muon", momentum=0.9)
    stepper = optim.build_optimizer(optim.parameter_groups(model, settings), settings)
    mean = torch.zeros(48, 12, dtype=torch.float64)
    for _ in range(3):
        before = weight.detach().double()
        slope = torch.randn(48, 12, generator=random)
        weight.grad = slope.clone()
        stepper.step()
        mean = 0.9 * mean + 0.1 * slope.double()
        left, _, right = torch.linalg.svd(0.9 * mean + 0.1 * slope.double(), full_matrices=False)
        moved = (before - weight.detach().double()) / RATE / (48 / 12) ** 0.5
        inside = left.T @ moved @ right.T  # diagonal, if it has the same singular vectors
        along = inside.diagonal()
        assert along.min() > 0.66 and along.max() < 1.16
        assert (inside - along.diag()).norm() < 0.02 * inside.norm()


@pytest.mark.parametrize("shape", [(48, 12), (12, 48), (20, 20)])
def test_products_of_float32_where_there_is_no_bf16(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit torch's own iteration, which casts to bf16, without the cast."""
    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random)
    slopes = torch.randn(3, *shape, generator=random)
    groups = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}
    updated = []
    for kind in (torch.optim.Muon, optimizers.Float32Muon):
        weight = torch.nn.Parameter(start.clone())
        idle = torch.nn.Parameter(start.clone())
        stepper = kind([{"params": [weight, idle]}], **groups)
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "bfloat16", Tensor.clone)
            for slope in slopes:
                weight.grad = slope.clone()
                stepper.step()
        assert torch.equal(idle, start)
        updated.append(weight.detach())
    assert torch.equal(*updated) and not torch.equal(updated[0], start)


@pytest.mark.parametrize("has_bf16", [True, False])
def test_the_cpu_says_which(has_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers.library, "has_bf16", lambda: has_bf16)
    weight = torch.nn.Parameter(torch.zeros(4, 3))
    model = torch.nn.Module()
    model.named_parameters = lambda: iter([("layers.0.mlp.up_proj.weight", weight)])
    settings = OptimConfig(name="muon")
    stepper = optim.build_optimizer(optim.parameter_groups(model, settings), settings)
    assert type(stepper.parts[0]) is (torch.optim.Muon if has_bf16 else optimizers.Float32Muon)


def test_what_is_no_hidden_matrix_is_left_to_adamw() -> None:
    model = Molmo(synthetic.MODEL)
    groups = optim.parameter_groups(model, run().optim)
    muon = {name for group in groups if "matrices" in group for name in group["names"]}
    rest = {name for group in groups if "matrices" not in group for name in group["names"]}
    shapes = {name: parameter.dim() for name, parameter in model.named_parameters()}
    assert {"layers.0.mlp.up_proj.weight", "vision.layers.0.mlp.fc1.weight"} < muon
    assert "connector.projector.down_proj.weight" in muon
    tables = {"connector.pad_embed", "embed.embedding", "embed.new_embedding"}
    tables |= {"vision.embeddings.position_embedding", "vision.embeddings.patch_embedding.weight"}
    tables.add("head.lm_head.weight")
    assert tables < rest and all(shapes[name] == 2 for name in muon)
    assert rest - tables == {name for name in rest if shapes[name] == 1}
    experts = torch.nn.Parameter(torch.zeros(4, 2, 2))
    assert not is_hidden_matrix("layers.0.mlp.experts.down_proj", experts)


def backwards(piece: Fragment) -> Fragment:
    """A piece whose tensors are named from the last to the first."""
    return replace(piece, tensors=dict(reversed(piece.tensors.items())))


def by_itself(config: RunConfig, rounding: float = 0.0) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and weights of one process."""
    losses, _, weights = plain(config, rounding)
    return losses, weights


def leg(
    world: World, folder: str, to: int, config: RunConfig
) -> tuple[list[float], dict[str, Tensor]]:
    """Train on from the newest checkpoint to a step, and save.

    The last rank names its state in another order, as a process of its own may: forked ranks order sets alike.
    """
    engine = build_engine(config, world)
    fragments = engine.fragments
    if world.rank == world.size - 1:
        engine.fragments = lambda changed=False: map(backwards, fragments(changed))
    engine.load(folder)
    log = []
    while engine.step < to:
        step = engine.step + 1
        batches = synthetic.micro_batches(config, step, engine.data_rank, engine.data_size)
        log.append(engine.train_step(batches)["loss"])
    share = config.global_batch // engine.data_size
    engine.save(folder, {engine.data_rank * share + i: {"seen": to} for i in range(share)})
    engine.close()
    return log, dict(engine.full_state())


def test_two_ranks_and_a_resume_on_one_train_as_one_process(tmp_path: Path) -> None:
    """Within what first weights rounded otherwise change: the orthogonal part is made in bf16."""
    first, _ = run_ranks(leg, 2, str(tmp_path), 2, run())[0]
    second, weights = run_ranks(leg, 1, str(tmp_path), STEPS, run())[0]
    expected = by_itself(run())
    ours = difference(([*first, *second], weights), expected)
    noise = difference(by_itself(run(), rounding=1e-7), expected)
    assert all(mine <= 3 * theirs for mine, theirs in zip(ours, noise)), (ours, noise)
    adamw = replace(run(), optim=replace(run().optim, name="adamw"))
    other = difference(by_itself(adamw), expected)
    assert all(10 * mine < theirs for mine, theirs in zip(ours, other)), (ours, other)


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_a_resume_on_as_many_ranks_is_exact(name: str, tmp_path: Path) -> None:
    config = replace(run(), optim=replace(run().optim, name=name))
    folders = tmp_path / "once", tmp_path / "twice"
    once = run_ranks(leg, 2, str(folders[0]), STEPS, config)
    run_ranks(leg, 2, str(folders[1]), 2, config)
    twice = run_ranks(leg, 2, str(folders[1]), STEPS, config)
    for (_, weights), (_, again) in zip(once, twice, strict=True):
        assert all(torch.equal(tensor, again[key]) for key, tensor in weights.items())


def test_cut_matrices_are_refused() -> None:
    config = replace(run(), strategy="ds_configs/zero1.json")
    with pytest.raises(ValueError, match="needs whole matrices, and ZeRO-1 cuts them.*zero0.json"):
        refuse(read_strategy(config.strategy), config, 2)
