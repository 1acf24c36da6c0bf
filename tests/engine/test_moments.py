"""Betas and eps of AdamW by component: two steps by the formula. Their equality over strategies is test_parallel's."""

import dataclasses

import pytest
import torch

from molmo_ds.config import ComponentConfig, OptimConfig
from molmo_ds.engine import optim
from molmo_ds.testing import synthetic

BETAS = {"connector": (0.5, 0.6), "vision": (0.9, 0.95), "text": (0.8, 0.99)}
EPS = {"connector": 1e-2, "vision": 1e-6, "text": 1e-3}
SETTINGS = OptimConfig(
    connector=ComponentConfig(lr=0.1, betas=BETAS["connector"], eps=EPS["connector"]),
    vision=ComponentConfig(lr=0.1),
    text=ComponentConfig(lr=0.1, betas=BETAS["text"], eps=EPS["text"]),
)


@pytest.mark.parametrize("fused", [True, None])
def test_each_component_has_its_moments(fused: bool | None) -> None:
    names = {"connector": "connector.w1.weight", "vision": "vision.layers.0.attention.qkv.weight"}
    names["text"] = "layers.0.mlp.down_proj.weight"
    model = torch.nn.Module()
    held = {part: torch.nn.Parameter(torch.tensor([1.0, -2.0])) for part in names}
    model.named_parameters = lambda: ((names[part], held[part]) for part in names)
    groups = optim.parameter_groups(model, SETTINGS)
    stepper = optim.build_optimizer(groups, SETTINGS, fused)
    slopes = [torch.tensor([0.3, -0.01]), torch.tensor([-0.2, 0.05])]
    for slope in slopes:
        for parameter in held.values():
            parameter.grad = slope.clone()
        stepper.step()
    for part, parameter in held.items():
        first, second = BETAS[part]
        weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
        mean = torch.zeros(2, dtype=torch.float64)
        square = torch.zeros(2, dtype=torch.float64)
        for step, slope in enumerate(slopes, 1):
            mean = first * mean + (1 - first) * slope.double()
            square = second * square + (1 - second) * slope.double() ** 2
            root = (square / (1 - second**step)).sqrt() + EPS[part]
            weight = weight - 0.1 * mean / (1 - first**step) / root
        assert parameter.detach().double() == pytest.approx(weight, abs=1e-6), part


def test_the_strategies_are_compared_with_unlike_moments_and_sgd_has_none() -> None:
    run = synthetic.adamw().optim
    assert len({run.connector.betas, run.vision.betas, run.text.betas}) == 3
    plain = torch.nn.Linear(2, 2)
    plain.named_parameters = lambda: iter([("layers.0.mlp.down_proj.weight", plain.weight)])
    (group,) = optim.parameter_groups(plain, dataclasses.replace(SETTINGS, name="sgd"))
    assert not {"betas", "eps"} & set(group)
