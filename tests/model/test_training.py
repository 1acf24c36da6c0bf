"""Precision, dropout, first weights and activation checkpointing."""

import pytest
import tiny_models
import torch
from tiny_models import FAMILIES, document, pack
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.model.init import initial_parameter
from molmo_ds.model.molmo import CHECKPOINTING, Molmo
from molmo_ds.ops.rope import rope_table


def batch(seed: int = 0):
    return pack(
        [[document(2, [7, 5], seed)], [document(1, [9], seed + 1), document(0, [6], seed + 2)]]
    )


def gradients(model: Molmo, sample) -> tuple[list[Tensor], dict[str, Tensor | None]]:
    model.zero_grad()
    sums = model(sample)
    (sums[0] + sums[1]).backward()
    return [s.detach() for s in sums], {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_residual_stream_stays_float32_under_autocast(family: str) -> None:
    model = tiny_models.model(family)
    seen: dict[str, torch.dtype] = {}
    for name in ("embed", "layers.0", "layers.1"):
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.update({name: out.hidden.dtype})
        )
    queries: list[torch.dtype] = []
    core = model.layers[0].self_attn.core
    plain = type(core).__call__

    class Watch(type(core)):
        def __call__(self, q, k, v, plan, dropout_p):
            queries.append(q.dtype)
            return plain(self, q, k, v, plan, dropout_p)

    model.layers[0].self_attn.core = Watch()
    exact = [s.item() for s in model(batch())]
    with torch.autocast("cpu", torch.bfloat16):
        sums = model(batch())
    assert set(seen.values()) == {torch.float32} and all(s.dtype == torch.float32 for s in sums)
    assert queries == [torch.float32, torch.bfloat16]
    assert sums[0].item() == pytest.approx(exact[0], rel=2e-2) and sums[0].item() != exact[0]


def test_positions_are_turned_in_float32() -> None:
    # at position 100,000 a bfloat16 table would be off by radians
    model = tiny_models.model(num_hidden_layers=1).bfloat16()
    kept: list[Tensor] = []
    attention = model.layers[0].self_attn
    plain = attention.core.__call__

    class Watch(type(attention.core)):
        def __call__(self, q, k, v, plan, dropout_p):
            kept.append(q)
            return plain(q, k, v, plan, dropout_p)

    attention.core = Watch()
    sample = pack([[document(0, [8])]])
    model.hidden(sample)
    model.hidden(sample.replace(position_ids=sample.position_ids + 100_000))
    near, far = (q.double() for q in kept)
    cos, sin = (t.double()[:, None] for t in rope_table(torch.full((1, 1), 100_000), 8, 1e4))
    half = near.roll(4, -1) * torch.cat((-torch.ones(4), torch.ones(4)))
    # two roundings to bfloat16
    torch.testing.assert_close(far, near * cos + half * sin, atol=0.04, rtol=0.02)


@pytest.mark.parametrize("norm_after", [False, True])
def test_response_dropout(norm_after: bool) -> None:
    config = tiny_models.config(
        "olmo2" if norm_after else "qwen2", residual_dropout=0.5, response_residual_dropout=0.25
    )
    layer = DecoderLayer(config.text)
    x = torch.ones(2, 4000, 32)
    learnt = torch.zeros(2, 4000)
    learnt[0] = 0.3
    torch.manual_seed(0)
    dropped = layer.drop(x, learnt)
    for row, rate in ((0, 0.25), (1, 0.5)):
        kept = dropped[row] != 0
        assert float(kept.float().mean()) == pytest.approx(1 - rate, abs=0.01)
        assert torch.all(dropped[row][kept] == 1 / (1 - rate))
    # element by element, not whole positions
    assert float((dropped[1] != 0).float().mean(0).std()) < 0.03
    assert torch.equal(layer.eval().drop(x, learnt), x)


def test_dropout_acts_on_both_branches_of_a_block() -> None:
    # drops everything not learnt
    model = tiny_models.model(residual_dropout=1 - 1e-7, num_hidden_layers=1).train()
    sample = pack([[document(1, [6])]])
    embedded = {}
    model.embed.register_forward_hook(lambda _, __, out: embedded.update(out=out.hidden))
    torch.manual_seed(0)
    hidden = model.body(sample).hidden
    learnt = sample.loss_weights[0] > 0
    assert learnt.any() and torch.equal(hidden[0, ~learnt], embedded["out"][0, ~learnt])
    assert not torch.allclose(hidden[0, learnt], embedded["out"][0, learnt], atol=0.1)


@pytest.mark.parametrize("mode", CHECKPOINTING[1:])
def test_checkpointing_changes_no_gradient(mode: str) -> None:
    plain = tiny_models.model(residual_dropout=0.1).train()
    again = tiny_models.model(residual_dropout=0.1, checkpointing=mode).train()
    calls: dict[str, int] = {}
    for name in again.rows:
        again.get_submodule(name).register_forward_pre_hook(
            lambda _, __, name=name: calls.update({name: calls.get(name, 0) + 1})
        )
    results = []
    for model in (plain, again):
        torch.manual_seed(3)
        results.append(gradients(model, batch()))
    for a, b in zip(results[0][0], results[1][0]):
        assert torch.equal(a, b)
    for name, grad in results[0][1].items():
        assert (grad is None) == (results[1][1][name] is None)
        assert grad is None or torch.equal(grad, results[1][1][name]), name
    twice = {name for name, n in calls.items() if n == 2}
    vision, text = ({f"{p}layers.{i}" for i in range(n)} for p, n in (("vision.", 3), ("", 2)))
    first = {"vision.layers.0", "layers.0"}
    expected = {
        "full": vision | text,
        "offload": vision | text,
        "vision": vision,
        "one_in_two": first | {"vision.layers.2"},
        "one_in_three": first,
        "one_in_four": first,
        "two_in_three": (vision | text) - first,
        "three_in_four": (vision | text) - first,
    }[mode]
    # which rests: nothing to compute again
    assert twice <= expected and expected - twice <= {"vision.layers.2"}


def test_offloading_parks_one_tensor_per_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the backward pass of a layer is its hidden input, once, and it goes through save_on_cpu."""
    parked: list[torch.Size] = []

    class Parking(torch.autograd.graph.saved_tensors_hooks):
        def __init__(self, pin_memory: bool) -> None:
            super().__init__(lambda x: (parked.append(x.shape), x.clone())[1], lambda x: x)

    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Parking)
    made = tiny_models.model(checkpointing="offload").train()
    sample = batch()
    seen: list[torch.Size] = []
    for name in made.rows:
        # which has no input: it follows the last feature
        if "layers" in name and name != "vision.layers.2":
            made.get_submodule(name).register_forward_pre_hook(
                lambda _, x: seen.append(x[0].hidden.shape)
            )
    made(sample)
    assert parked == seen and len(parked) == 4


def test_first_weights_are_a_function_of_seed_and_name() -> None:
    config = tiny_models.config()
    model = tiny_models.model(seed=5)
    with torch.device("meta"):
        built = Molmo(config)
    built = built.to_empty(device="cpu")
    built.reset_parameters(5)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, built.get_parameter(name)), name
        assert torch.equal(parameter, initial_parameter(config, name, parameter.shape, 5)), name
    other = tiny_models.model(seed=6).state_dict()
    same = {name for name, p in model.named_parameters() if torch.equal(p, other[name])}
    assert all("norm" in name or name.endswith(("bias", "pad_embed")) for name in same)
    pair = (model.layers[0].mlp.gate_proj.weight, model.layers[0].mlp.up_proj.weight)
    assert not torch.equal(*pair)  # one shape, two names


def test_first_weights_have_the_reference_deviations() -> None:
    config = tiny_models.config()

    def deviation(name: str, *shape: int) -> float:
        return float(initial_parameter(config, name, shape, 0).std())

    assert deviation("layers.0.mlp.gate_proj.weight", 400, 400) == pytest.approx(0.2, rel=0.02)
    assert deviation("vision.layers.0.self_attn.q_proj.weight", 400, 400) == pytest.approx(
        0.2, rel=0.02
    )
    # 1 / sqrt(inputs)
    assert deviation("vision.layers.0.mlp.fc1.weight", 400, 400) == pytest.approx(0.05, rel=0.02)
    assert deviation("vision.embeddings.class_embedding", 40_000) == pytest.approx(
        32**-0.5, rel=0.02
    )
    assert deviation("connector.projector.weight", 400, 200) == pytest.approx(
        (2 / 600) ** 0.5, rel=0.02
    )
    assert deviation("connector.pad_embed", 2, 64) == 0
    assert float(initial_parameter(config, "layers.0.self_attn.q_norm.weight", (8,), 0).min()) == 1
    assert float(initial_parameter(config, "vision.layers.0.layer_scale1", (8,), 0).min()) == 1


def test_layers_compile_without_graph_breaks_and_once() -> None:
    model = tiny_models.model()
    compiled = tiny_models.model()
    counter = CompileCounterWithBackend("aot_eager")
    for layer in (*compiled.vision.layers, *compiled.layers):
        layer.run = torch.compile(layer.run, backend=counter, fullgraph=True, dynamic=False)
    compiles: list[int] = []
    for seed in (0, 10, 20):  # the same shapes
        sample = batch(seed)
        ours = gradients(compiled, sample)
        theirs = gradients(model, sample)
        assert [float(s) for s in ours[0]] == pytest.approx([float(s) for s in theirs[0]], rel=1e-5)
        for name, grad in theirs[1].items():
            assert grad is None or torch.allclose(grad, ours[1][name], atol=1e-4, rtol=1e-3), name
        compiles.append(counter.frame_count)
    # the second and third batch compiled nothing
    assert compiles[0] > 0 and len(set(compiles)) == 1
    torch._dynamo.reset()
