"""Clipping in few kernels finds the same norms: large flat tensors, slices of one, empty and strided ones."""

import pytest
import torch

from molmo_ds.config import OptimConfig
from molmo_ds.engine import optim


def test_slices_of_one_buffer_are_one_tensor() -> None:
    flat = torch.arange(12.0)
    apart = torch.arange(3.0)
    made = optim.joined([flat[:4], flat[4:4], flat[4:9].view(5, 1), apart, flat[10:]])
    assert [x.tolist() for x in made] == [
        list(range(9)),
        [0.0, 1.0, 2.0],
        [10.0, 11.0],
    ]
    made[0].mul_(0)
    assert flat.tolist() == [0.0] * 9 + [9.0, 10.0, 11.0]


def test_what_does_not_follow_stays_apart() -> None:
    flat = torch.arange(8.0)
    assert len(optim.joined([flat[4:], flat[:4]])) == 2
    assert len(optim.joined([flat[:2], flat[2:4].bfloat16()])) == 2
    assert len(optim.joined([torch.ones(2, 3).t(), torch.ones(2)])) == 2


@pytest.mark.parametrize("sizes", [(3_000_001,), (65_536, 65_537, 5), (1,)], ids=str)
def test_norms_are_right_however_gradients_lie(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    flat = torch.randn(sum(sizes))
    exact = float(flat.double().norm())
    slices = list(flat.split(sizes))
    for pieces in (slices, [piece.clone() for piece in slices], [flat]):
        norm = optim.clip({"text": pieces}, lambda squares: None, 0.0)["text"]
        assert float(norm) == pytest.approx(exact, rel=3e-7)
    optim.clip({"text": slices}, lambda squares: None, exact / 2)
    assert float(flat.double().norm()) == pytest.approx(exact / 2, rel=1e-5)


def test_a_component_with_nothing_here_has_norm_0() -> None:
    norms = optim.clip({"text": [torch.empty(0)], "vision": []}, lambda squares: None, 1.0)
    assert [float(norm) for norm in norms.values()] == [0.0, 0.0, 0.0]


def test_a_step_scales_as_it_reads() -> None:
    """AdamW that is told what to divide by, torch's kernel and ours, equals clipping before the step."""
    torch.manual_seed(0)
    settings = OptimConfig(eps=1e-3)
    weights = [torch.randn(300), torch.randn(70)]
    slopes = [torch.randn(300) * 9, torch.randn(70) / 9]
    made = []
    for fused, told in ((True, True), (None, True), (None, False)):
        parameters = [torch.nn.Parameter(w.clone()) for w in weights]
        groups = [
            {"params": [p], "component": part, "lr": 0.1}
            for p, part in zip(parameters, ("vision", "text"))
        ]
        stepping = optim.build_optimizer(groups, settings, fused)
        for limit in (2.0, 0.0, 1.0):
            for p, slope in zip(parameters, slopes):
                p.grad = slope.clone()
            gradients = {"vision": [parameters[0].grad], "text": [parameters[1].grad]}
            groups = stepping.param_groups if told else None
            norms = optim.clip(gradients, lambda squares: None, limit, groups=groups)
            assert float(norms["vision"]) == pytest.approx(float(slopes[0].norm()), rel=1e-6)
            stepping.step()
        assert [group["params"] for group in stepping.param_groups] == [[p] for p in parameters]
        made.append(torch.cat([p.detach() for p in parameters]))
    for one in made[:2]:
        assert (one - made[2]).abs().max() < 1e-6
    assert (made[0] - torch.cat(weights)).abs().max() > 0.1
