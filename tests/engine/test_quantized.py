"""INT8 and FP8 weights: every element within half a step, and logits as far off as rounding noise makes them."""

import importlib.util
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Sample
from molmo_ds.data.order.packing import collate
from molmo_ds.engine.answering.quantized import check, quantize
from molmo_ds.engine.launch import World
from molmo_ds.engine.strategy import Execution, parse
from molmo_ds.infer.options import Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.replica import Replica
from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.model.linear import Linear
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing import synthetic
from molmo_ds.testing.oracle import family
from molmo_ds.testing.text_sample import text_sample
from molmo_ds.weights.slices import Cut

needs_torchao = pytest.mark.skipif(
    importlib.util.find_spec("torchao") is None, reason="torchao is not installed"
)


def network(config: MolmoConfig = synthetic.MODEL) -> Molmo:
    model = Molmo(config)
    model.reset_parameters(0)
    return model.eval()


def matrices(model: Molmo) -> dict[str, Tensor]:
    return {
        f"{name}.{inner}.weight": module.weight
        for name, layer in model.named_modules()
        if isinstance(layer, DecoderLayer)
        for inner, module in layer.named_modules()
        if isinstance(module, Linear)
    }


def held_bytes(weight: Tensor) -> int:
    """Of all that a quantised weight is made of."""
    names, _ = weight.__tensor_flatten__()
    return sum(getattr(weight, name).nbytes for name in names)


@needs_torchao
@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_each_element_is_within_half_a_step(weights: str) -> None:
    model = network()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    names = set(matrices(model))
    quantize(model.layers, weights)
    after = matrices(model)
    assert len(names) == 7 * len(model.layers) and after.keys() == names
    for name, weight in after.items():
        old = before[name]
        error = (weight.dequantize() - old).abs()
        largest = old.abs().amax(1, keepdim=True)
        # int8: 255 steps over the row's range; fp8: 4 significant bits, and below 2^-6 of a range of 448 whole 2^-9
        step = (
            largest / 127.5
            if weights == "int8"
            else torch.maximum(old.abs() / 8, largest / 448 / 2**9)
        )
        assert float((error / step).max()) <= 0.5 * (1 + 1e-4), name
        assert float(error.max()) > 0
        # and a scale and a zero for each row
        assert held_bytes(weight) <= old.numel() + 8 * len(old)
    kept = {name: weight for name, weight in model.named_parameters() if name not in names}
    assert all(torch.equal(weight, before[name]) for name, weight in kept.items())


def noise(model: Molmo, words: int) -> tuple[Tensor, Tensor]:
    """(the last logits [E] of a prompt, [E / 8] how far every eighth moves: a standard deviation).

    To first order a logit moves by sum(gradient x error), each error uniform in a step: variance step^2 / 12.
    """
    logits = model.logits(collate([[sample(words)]], words))[0, -1]
    weights = list(matrices(model).values())
    steps = [weight.detach().abs().amax(1, keepdim=True) / 127.5 for weight in weights]
    variances = []
    for word in range(0, len(logits), 8):
        gradients = torch.autograd.grad(logits[word], weights, retain_graph=True)
        variances.append(sum((g * step).square().sum() / 12 for g, step in zip(gradients, steps)))
    return logits.detach(), torch.stack(variances).sqrt()


@needs_torchao
@pytest.mark.parametrize("weights", ["int8", "fp8"])
def test_logits_are_those_of_the_rounded_weights(weights: str) -> None:
    model = network()
    quantize(model.layers, weights)
    rounded = {name: weight.dequantize() for name, weight in matrices(model).items()}
    plain = network()
    plain.load_state_dict(rounded, strict=False)
    batch = collate([[sample(9)]], 9)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(batch), plain.logits(batch), atol=1e-5, rtol=0)
        assert not torch.allclose(model.logits(batch), network().logits(batch), atol=1e-3)


@needs_torchao
def test_logits_differ_no_more_than_rounding_noise_says() -> None:
    for words in (5, 7, 8, 9, 12):
        model = network()
        exact, sigma = noise(model, words)
        quantize(model.layers, "int8")
        with torch.no_grad():
            found = model.logits(collate([[sample(words)]], words))[0, -1]
        relative = (found - exact)[::8] / sigma
        assert len(relative) == 12
        assert 0.1 < float(relative.abs().max()) < 5, words


@needs_torchao
def test_a_replica_gives_the_same_words_where_they_are_clear() -> None:
    _, sigma = noise(network(), 8)
    clear = 5 * 2**0.5 * float(sigma.max())  # a difference of two logits moves by sqrt(2) as much
    options = Options(max_new_tokens=8, logprobs=2)
    asked = [Question(name=str(i), prompt=sample(5 + i), options=options) for i in range(6)]
    exact = pieces(Replica.of(network(), 97), asked)
    found = pieces(Replica.of(network(), 97, execution=Execution(weights="int8")), asked)
    compared = 0
    for name, tokens in exact.items():
        for (token, top), (other, _) in zip(tokens, found[name]):
            lead = top[0][1] - top[1][1]
            assert token == other or lead < clear, (
                "a word that was clearly the likeliest is another"
            )
            compared += lead >= clear
            if token != other:
                break  # the answers part here
    assert compared > 16  # of 48


@needs_torchao
def test_a_strategy_file_quantises_what_a_rank_holds() -> None:
    whole = network().state_dict()
    ours = {"engine": "inference", "weights": "int8"}

    def fill(cuts: dict[str, Cut]) -> Iterator[tuple[str, Tensor]]:
        return ((name, whole[name][cut]) for name, cut in cuts.items())

    world = World(0, 0, 1, torch.device("cpu"))
    replica = Replica.over_ranks(
        synthetic.MODEL, parse("mine.json", {"molmo_ds": ours}), world, fill, 97
    )
    asked = [Question(name="one", prompt=sample(6), options=Options(max_new_tokens=4, logprobs=2))]
    assert pieces(replica, asked) == pieces(
        Replica.of(network(), 97, execution=Execution(weights="int8")), asked
    )
    assert replica.share.layers[0].mlp.down_proj.weight.__tensor_flatten__()


@pytest.mark.parametrize(
    ("decoder", "there", "sentence"),
    [
        ("qwen2", False, "needs torchao; install it"),
        ("olmoe", True, "cannot hold the fused weights of experts"),
    ],
)
def test_what_cannot_be_quantised_is_a_sentence(
    decoder: str, there: bool, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if there else None)
    with pytest.raises(ValueError, match=sentence):
        check(family(decoder), "int8")
    check(family(decoder), None)


def pieces(replica: Replica, asked: list[Question]) -> dict[str, list]:
    """(token, the two likeliest with their log-probabilities) of each answer."""
    replica.admit(asked)
    out: dict[str, list] = {}
    while replica.busy:
        for piece in replica.step():
            out.setdefault(piece.name, []).append((piece.token, piece.top))
    return out


def sample(words: int) -> Sample:
    """A prompt without a picture."""
    return text_sample(torch.arange(1, 1 + words) * 7 % 90)
