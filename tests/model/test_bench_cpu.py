"""tools/bench/bench_cpu.py: contenders find equal losses, and the limit counts what a step multiplies."""

import pytest
import torch

from molmo_ds.ops import dispatch
from molmo_ds.ops.weighted_cross_entropy import weighted_cross_entropy
from molmo_ds.testing.scripts import load

machine_limit = load("tools/bench", "machine_limit")
bench_cpu = load("tools/bench", "bench_cpu", "bench_answers", "step_batches", "stepper")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_main(
    has_bf16: bool, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asserts the losses by itself; timing shapes takes seconds and is left out."""
    monkeypatch.setattr(machine_limit, "best_seconds", lambda shape: 1e-3)
    monkeypatch.setattr(bench_cpu.library, "has_bf16", lambda: has_bf16)
    bench_cpu.main(["--preset=tiny", "--tokens=64", "--crops=1", "--steps=1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in lines[1:]] == [
        "| the export under transformers, torch's AdamW",
        "| molmo_ds, MOLMO_DS_OPS=torch",
        "| molmo_ds",
        *(["| molmo_ds, MOLMO_DS_OPS=torch, bf16", "| molmo_ds, bf16"] if has_bf16 else []),
        "| limit in fp32: products and visible attention",
    ]


def test_products_and_visible_pairs_are_counted() -> None:
    """Two products of 2 x 3 x 4 and its gradients; causal attention of 5 tokens sees 15 of 25 pairs."""
    count = machine_limit.Count()
    a = torch.randn(2, 3, requires_grad=True)
    b = torch.randn(3, 4, requires_grad=True)
    q = torch.randn(1, 2, 5, 8, requires_grad=True)
    with count:
        (a @ b).sum().backward()
        torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
    assert count.products == {(2, 3, 4): 1, (2, 4, 3): 1, (3, 2, 4): 1}
    assert count.operations == 3 * 2 * 24
    # 2 heads of 8 channels; forward 2 products of a pair, backward 5
    assert count.attention == 2 * 15 * 8 * 2 * (2 + 5)


def test_the_products_of_the_loss_are_counted() -> None:
    """Logits, and the gradients of both that they are made of; the op is one call, with chunks inside."""
    count = machine_limit.Count()
    hidden = torch.randn(6, 3, requires_grad=True)
    head = torch.randn(40, 3, requires_grad=True)
    with dispatch.use("torch"), count:
        sums = weighted_cross_entropy(hidden, head, torch.arange(6), torch.ones(6), 0.0)
        sums[0].backward()
    assert count.products == {(6, 3, 40): 1, (6, 40, 3): 1, (40, 6, 3): 1}


def test_losses_that_differ_end_it() -> None:
    with pytest.raises(AssertionError, match="losses differ"):
        bench_cpu.measure({"a": lambda step: 1.0, "b": lambda step: 1.001}, 1, limit=None)
