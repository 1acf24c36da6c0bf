"""Vision towers and connectors on their own against the reference."""

import pytest
import torch
from golden_files import listed, read_json, read_tensors
from golden_models import real_crops, vision_config
from torch import Tensor, nn

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.batch import Carry, windows_of
from molmo_ds.model.connector import Connector
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.table import Table
from molmo_ds.model.vision import VisionEmbeddings, VisionLayer, used_layers
from molmo_ds.weights import rename

ATOL = 1e-4  # measured: 4e-6
POSITIONS = "positional_embedding"
TOWERS = listed("A_model/vit_meta.json")
CONNECTORS = listed("A_model/connector_meta.json")
VIT = "vision_backbone.image_vit."
BACKBONE = "vision_backbone."


def tower_cases() -> list[tuple[str, str]]:
    return [
        (tower, case)
        for tower in TOWERS
        for case in listed("A_model/vit_meta.json", tower, "cases")
    ]


def fill(
    module: nn.Module, prefix: str, table: Table, golden: dict[str, Tensor], root: str
) -> None:
    """Load the rules of `table` that fill `module`, whose parameters are called `prefix`...; all must be given."""
    wanted = {prefix + key for key in module.state_dict()}
    rules = [rule for rule in table if wanted & set(rule.ours)]
    state = dict(rename.to_ours(rules, lambda key: golden["w." + key.removeprefix(root)]))
    module.load_state_dict({key.removeprefix(prefix): state[key] for key in wanted}, strict=True)


@pytest.mark.parametrize(("tower", "case"), tower_cases())
def test_vision_tower(tower: str, case: str) -> None:
    meta = read_json("A_model/vit_meta.json")[tower]
    golden = read_tensors(f"A_model/vit_{tower}.safetensors")
    if case != "native":
        golden["w." + POSITIONS] = golden[f"w.{case}.{POSITIONS}"]
    config = vision_config(meta["cases"][case]["vision_backbone"], meta["vit_layers"])
    assert config.num_positions == meta["cases"][case]["pos_grid"] ** 2
    vision = nn.Module()
    vision.embeddings = VisionEmbeddings(config, ImageConfig())
    vision.layers = nn.ModuleList(VisionLayer(config, i) for i in range(config.num_hidden_layers))
    table = molmo_names.reference(MolmoConfig(vision=config))
    fill(vision, "vision.", table, golden, VIT)

    images = golden["in.images"]
    real = real_crops(images)[0]  # a crop of -1 is padding, which our batches do not hold
    outputs = []
    with torch.no_grad():
        x = Carry(hidden=vision.embeddings.tokens(images[0][real]))
        for layer in vision.layers:
            x = layer(x)
            outputs.append(x.hidden)
    used = used_layers(config)
    features = dict(zip(used, x.features))
    joined = torch.cat([features[i % config.num_hidden_layers] for i in config.feature_layers], -1)
    patches = joined[:, vision.embeddings.class_tokens :]
    stored = golden[f"out.{case}.features"][0]
    torch.testing.assert_close(patches[: len(stored)], stored, atol=ATOL, rtol=0)
    for i in range(max(used) if case == "native" else 0):
        block = golden[f"out.native.block_{i}_output"]
        torch.testing.assert_close(outputs[i][: len(block)], block, atol=ATOL, rtol=0)


@pytest.mark.parametrize("name", CONNECTORS)
def test_connector(name: str) -> None:
    meta = read_json("A_model/connector_meta.json")[name]
    golden = read_tensors(f"A_model/connector_{name}.safetensors")
    layers = len(meta["vit_layers"])
    width = meta["vit_width"]
    vision = VisionConfig(
        image_size=14 * meta["grid"],  # any patch size makes this grid
        patch_size=14,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=max(n + 1 if n >= 0 else -n for n in meta["vit_layers"]),
        num_attention_heads=meta["vit_heads"],
        feature_layers=tuple(meta["vit_layers"]),
    )
    text = TextConfig(hidden_size=meta["d_model"], intermediate_size=meta["mlp_hidden_size"] // 2)
    config = ConnectorConfig(
        pooling=meta["image_pooling_2d"],
        projector=meta["image_projector"],
        padding_embed=meta["image_padding_embed"] or "none",
    )
    connector = Connector(vision, config, text)
    fill(
        connector,
        "connector.",
        molmo_names.reference(MolmoConfig(text=text, vision=vision, connector=config)),
        golden,
        BACKBONE,
    )
    features = golden["in.features"]
    masks = golden["in.image_masks"]
    assert features.shape[-1] == layers * width
    # joined in the order of the feature layers
    split = list(features.flatten(0, 1).split(width, -1))
    with torch.no_grad():
        grid = round(masks.shape[2] ** 0.5)
        windows = windows_of(masks.shape[0] * masks.shape[1], grid, config.pooling_size)
        projected = connector.project(split, masks.flatten(0, 1), windows)
    torch.testing.assert_close(
        projected.view_as(golden["out.projected"]), golden["out.projected"], atol=ATOL, rtol=0
    )
