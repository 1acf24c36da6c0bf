"""The embedding of <im_patch>, to which features are added: kept at zero by new models, learnt by released ones."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from stored_models import model as tiny

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Carry
from molmo_ds.config import RunConfig
from molmo_ds.hub import in_vllm
from molmo_ds.hub.export import to_hub
from molmo_ds.hub.in_vllm import InVLLM
from molmo_ds.hub.load import write_weights
from molmo_ds.model.decoder import Embed
from molmo_ds.model.init import initial_parameter
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.random_weights import initial_folder
from molmo_ds.weights import patch_row
from molmo_ds.weights.first_weights import first_weights

CONFIG = tiny()


def model(row: str, words: int = 0) -> MolmoConfig:
    """The tiny model; `words` of the first table are padding, among which the image tokens lie then."""
    text = replace(CONFIG.text, vocab_size=CONFIG.text.embedding_size - words)
    return replace(CONFIG, text=text, connector=replace(CONFIG.connector, patch_row=row))


@pytest.mark.parametrize("words", [0, 8], ids=["second table", "first table"])
def test_the_row_is_zero_and_learns_nothing(words: int) -> None:
    config = model("zero", words)
    patch = config.patch_token
    source = torch.Generator().manual_seed(0)
    embeds = [Embed(config.text, zero_row=zero) for zero in (patch, None)]
    for parameter in embeds[0].parameters():
        torch.nn.init.normal_(parameter, generator=source)
    embeds[1].load_state_dict(embeds[0].state_dict())
    table = torch.cat(tuple(embeds[0].parameters()))
    row = patch if words else patch - config.text.embedding_size
    with torch.no_grad():
        (embeds[1].embedding if words else embeds[1].new_embedding)[row] = 0
    ids = torch.tensor([[3, patch, patch, patch + 1, patch - 2, patch]])
    features = torch.randn(2, config.text.hidden_size, generator=source, requires_grad=True)
    places = torch.tensor([1, 5])
    out, want = (
        embed(Carry(input_ids=ids, image_features=features, image_positions=places)).hidden
        for embed in embeds
    )
    assert torch.equal(out, want)
    assert torch.equal(out[0, 1], features[0]) and not out[0, 2].any()
    assert torch.equal(out[0, 3], table[patch + 1])
    out.sum().backward()
    grad = torch.cat([parameter.grad for parameter in embeds[0].parameters()])
    assert not grad[patch].any() and grad[patch + 1].all() and grad[3].all()


@pytest.mark.parametrize("words", [0, 8])
def test_first_weights(words: int) -> None:
    config = model("zero", words)
    cleared = {}
    for name, parameter in Molmo(config).embed.named_parameters():
        drawn = initial_parameter(config, f"embed.{name}", parameter.shape, 1)
        free = initial_parameter(model("learnt", words), f"embed.{name}", parameter.shape, 1)
        unlike = (drawn != free).any(1).nonzero().flatten().tolist()
        cleared[name] = [row for row in unlike if not drawn[row].any()]
        assert len(unlike) == len(cleared[name])
    patch = config.patch_token
    wanted = ([patch], []) if words else ([], [patch - config.text.embedding_size])
    assert cleared == dict(zip(("embedding", "new_embedding"), wanted))


def test_what_is_left_open_is_decided(tmp_path: Path) -> None:
    run = RunConfig(model=model("auto"), out=str(tmp_path / "run"))
    assert decided(run) == "zero"
    sizes = {name: p.shape for name, p in Molmo(CONFIG).named_parameters()}
    for row, want in (("auto", "learnt"), ("learnt", "learnt"), ("zero", "zero")):
        folder = tmp_path / row
        tensors = ((name, torch.ones(size)) for name, size in sizes.items())
        write_weights(folder, model(row), tensors, None, len(sizes))
        begun = replace(run, init_from=str(folder))
        assert decided(begun) == want
        name = "embed.new_embedding"
        read = first_weights(patch_row.resolved(begun))
        shape = tuple(sizes[name])
        first = read(name, shape, 0, sizes[name].numel()).view(shape)
        part = read(name, shape, 70, 150)  # cuts rows
        assert torch.equal(part, first.reshape(-1)[70:150])
        assert bool(first[2].any()) == (want == "learnt") and first[3].all()
        assert decided(replace(begun, model=model("zero"))) == "zero"
        # a run is resumed as it began, whatever it began with
        assert decided(replace(run, out=str(folder))) == row


def decided(run: RunConfig) -> str:
    return patch_row.resolved(run).model.connector.patch_row


def test_what_is_said_of_vllm() -> None:
    assert str(InVLLM(refusal="why", patch_norm=1.0, word_norm=1.0)) == "vLLM cannot serve it: why."
    assert str(InVLLM(refusal=None, patch_norm=0.0, word_norm=1.0)) == "vLLM can serve it."
    said = str(InVLLM(refusal=None, patch_norm=0.25, word_norm=1.5))
    assert "norm 0.25 (rows near it: 1.5)" in said and "model.connector.patch_row=zero" in said


@pytest.mark.parametrize("words", [0, 8], ids=["second table", "first table"])
@pytest.mark.parametrize("row", ["zero", "learnt"])
def test_a_folder_says_what_its_export_said(row: str, words: int, tmp_path: Path) -> None:
    config = model(row, words)
    initial_folder(tmp_path / "ours", config)
    said = to_hub(tmp_path / "ours", tmp_path / "out")
    assert said.refusal and bool(said.patch_norm) == (row == "learnt")
    assert in_vllm.read(tmp_path / "out") == said
    values = json.loads((tmp_path / "out/config.json").read_text())
    del values["molmo_ds"]
    (tmp_path / "out/config.json").write_text(json.dumps(values))
    assert in_vllm.read(tmp_path / "out") is None  # of others
