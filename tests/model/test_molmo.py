"""The layer list, the released sizes, packing and trees, and what a batch without pictures does."""

from dataclasses import replace

import pytest
import tiny_models
import torch
from tiny_models import FAMILIES, document, pack

from molmo_ds import presets
from molmo_ds.batch import Carry
from molmo_ds.model.molmo import Molmo, component, decays, layer_list, parameter_groups

RELEASED = {"molmo_7b_d": 8_021_025_280, "molmo_7b_o": 7_665_032_192, "molmo_72b": 73_308_285_952}


@pytest.mark.parametrize("name", RELEASED)
def test_released_models_have_their_size(name: str) -> None:
    with torch.device("meta"):
        model = Molmo(presets.get(name))
    assert sum(p.numel() for p in model.parameters()) == RELEASED[name]


@pytest.mark.parametrize(
    "name", [f"{n}/{tower}" for n in ("molmo_7b_d", "molmoe_1b") for tower in presets.TOWERS]
)
def test_every_tower_builds(name: str) -> None:
    config = presets.get(name)
    with torch.device("meta"):
        model = Molmo(config)
    vision, (deep, shallow) = config.vision, config.vision.feature_layers
    assert model.connector.order == [1, 0]  # deeper first
    used = [i for i, layer in enumerate(model.vision.layers) if layer.is_feature]
    assert used == [vision.num_hidden_layers + shallow, vision.num_hidden_layers + deep]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_names_and_pipeline_layers(family: str) -> None:
    model = tiny_models.model(family)
    rows = layer_list(model.config)
    batch = pack([[document(2, [5, 6])], [document(1, [9], seed=1)]])
    assert [name for name, *_ in rows] == model.rows
    x = Carry.of(batch)
    state: dict[str, torch.Tensor] = {}
    for i, (name, kind, arguments) in enumerate(rows):
        layer = kind(*arguments)
        weights = {
            k.removeprefix(name + "."): v
            for k, v in model.state_dict().items()
            if k.startswith(name + ".")
        }
        layer.load_state_dict(weights, strict=True)
        state |= {f"{name}.{k}": v for k, v in weights.items()}
        x = layer(x)
        if i + 1 < len(rows):
            assert isinstance(x, Carry)
            made = [*x.features, *(t for t in (x.image_features, x.hidden) if t is not None)]
            # a pipeline sends a gradient back for each
            assert made and all(t.requires_grad for t in made)
    assert set(state) == set(model.state_dict())
    for ours, whole in zip(x, model(batch)):
        assert torch.equal(ours, whole)


@pytest.mark.parametrize("family", FAMILIES)
def test_packing_changes_nothing(family: str) -> None:
    model = tiny_models.model(family)
    documents = [document(2, [7]), document(0, [5, 9], seed=1), document(1, [4], seed=2)]
    packed = model.hidden(pack([documents], length=60))[0]
    start = 0
    for alone in documents:
        end = start + len(alone[0]["input_ids"])
        torch.testing.assert_close(
            packed[start:end], model.hidden(pack([[alone]]))[0], atol=2e-5, rtol=0
        )
        start = end


def test_a_branch_is_a_conversation_of_its_own() -> None:
    model = tiny_models.model()
    tokens, images, positions = document(1, [6, 8, 5])
    tree = model.hidden(pack([[(tokens, images, positions)]]))[0]
    for branch in (1, 2, 3):
        keep = (tokens["branch_ids"] == 0) | (tokens["branch_ids"] == branch)
        alone = {name: values[keep] for name, values in tokens.items()}
        assert torch.equal(alone["position_ids"], torch.arange(int(keep.sum())))
        batch = pack([[(alone, images, positions)]])
        torch.testing.assert_close(tree[keep], model.hidden(batch)[0], atol=2e-5, rtol=0)


def test_several_pictures_go_where_they_belong() -> None:
    model = tiny_models.model()
    tokens, images, positions = document(3, [6])
    batch = pack([[(tokens, images, positions)]])
    # crops in another order, each with its own positions: the same example
    order = torch.tensor([2, 0, 1])
    shuffled = batch.replace(
        images=images[order],
        image_masks=batch.image_masks[order],
        image_positions=batch.image_positions.view(3, 4)[order].flatten(),
    )
    torch.testing.assert_close(model.hidden(batch), model.hidden(shuffled), atol=1e-5, rtol=0)
    swapped = batch.replace(images=images[order])
    assert not torch.allclose(model.hidden(batch), model.hidden(swapped), atol=1e-2)
    embedded = {}
    model.embed.register_forward_hook(lambda _, __, out: embedded.update(out=out.hidden))
    features = {}
    model.connector.register_forward_hook(
        lambda _, __, out: features.update(out=out.image_features)
    )
    model.hidden(batch)
    # added to the image token's own embedding
    added = embedded["out"][0, 1:13] - model.embed.new_embedding[2]
    torch.testing.assert_close(added, features["out"], atol=1e-5, rtol=0)


def test_a_batch_without_pictures_runs_the_tower_to_no_effect() -> None:
    model = tiny_models.model()
    batch = pack([[document(0, [8])]])
    noise = batch.replace(images=torch.randint(0, 256, batch.images.shape, dtype=torch.uint8))
    assert torch.equal(model.logits(batch), model.logits(noise))
    sums = model(noise)
    (sums[0] + sums[1]).backward()
    for name, parameter in model.named_parameters():
        if component(name) == "vision" and "vision.layers.2." not in name:
            # a gradient of zero, not none
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_blocks_behind_the_last_feature_rest() -> None:
    model = tiny_models.model()
    before = model.logits(batch := pack([[document(1, [8])]]))
    for parameter in model.vision.layers[2].parameters():
        parameter.data.fill_(float("nan"))
    assert torch.equal(model.logits(batch), before)


def test_bytes_and_floats_are_the_same_picture() -> None:
    model = tiny_models.model()
    batch = pack([[document(2, [5])]])
    mean, std = (torch.tensor(v) for v in model.vision.embeddings.pixels)
    pixels = (batch.images.float() / 255 - mean) / std
    # columns: row, column, channel
    patches = pixels.view(2, 4, 7, 4, 7, 3).transpose(2, 3).reshape(2, 16, 147)
    torch.testing.assert_close(
        model.logits(batch), model.logits(batch.replace(images=patches)), atol=1e-5, rtol=0
    )


def test_only_learnt_tokens_reach_the_head() -> None:
    model = tiny_models.model()
    batch = pack([[document(1, [5, 6])], [document(0, [9], seed=1)]], length=40)
    x = model.body(batch)
    hidden = x.hidden.detach()
    wanted = model.head(x._replace(hidden=hidden))
    hidden.flatten(0, 1)[batch.loss_weights.flatten() == 0] = torch.nan
    got = model.head(x._replace(hidden=hidden.requires_grad_()))
    assert torch.equal(torch.stack(got), torch.stack(wanted)) and bool(wanted[0].isfinite())
    (got[0] + got[1]).backward()
    assert torch.equal(hidden.grad.norm(dim=-1) > 0, batch.loss_weights > 0)


def test_groups() -> None:
    model = tiny_models.model("olmo2")
    groups = {name: (part, decayed) for name, _, part, decayed in parameter_groups(model)}
    assert set(groups) == set(dict(model.named_parameters()))
    assert groups["embed.new_embedding"] == ("connector", False)
    assert groups["connector.pad_embed"] == ("connector", True)
    assert groups["embed.embedding"] == ("text", False)
    assert groups["head.lm_head.weight"] == ("text", True) and groups["head.norm.weight"] == (
        "text",
        False,
    )
    assert groups["layers.0.self_attn.q_norm.weight"] == ("text", True)
    assert groups["layers.0.post_feedforward_layernorm.weight"] == ("text", False)
    assert groups["vision.embeddings.pre_layernorm.bias"] == ("vision", False)
    assert groups["vision.layers.0.self_attn.q_proj.bias"] == ("vision", True)
    assert not decays("vision.layers.0.layer_scale1") and not decays(
        "vision.embeddings.position_embedding"
    )


def test_a_wrong_checkpointing_mode_is_named() -> None:
    with pytest.raises(
        ValueError, match="activation_checkpointing is 'all'; use one of none, full"
    ):
        Molmo(tiny_models.config(), checkpointing="all")


def test_tied_head() -> None:
    model = tiny_models.model("llama")
    assert model.head.lm_head.weight is model.embed.embedding
    untied = Molmo(
        replace(model.config, text=replace(model.config.text, tie_word_embeddings=False))
    )
    untied.load_state_dict(model.state_dict(), strict=True)
    batch = pack([[document(1, [8])]])
    assert torch.equal(model.logits(batch), untied.eval().logits(batch))
