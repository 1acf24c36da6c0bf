"""Every table names every tensor of a model once, and leads there and back without changing a bit."""

import itertools
from dataclasses import replace

import pytest
import torch
from hub_models import TEXTS, TOWERS, tiny
from torch.nn import functional as F

from molmo_ds import presets
from molmo_ds.architecture import ConnectorConfig
from molmo_ds.hub.load import resized_positions, shapes_of
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.molmo import not_servable
from molmo_ds.testing.random_weights import random_state
from molmo_ds.weights import rename

CONNECTORS = {
    "attention_linear": ConnectorConfig(
        pooling="attention", projector="linear", padding_embed="regress"
    ),
    "stack_none": ConnectorConfig(pooling="stack", padding_embed="none"),
}


KINDS = [
    (text, of)
    for text in TEXTS
    for of in ("released", "reference", "llama")
    if (text, of) != ("olmoe", "llama")
]


@pytest.mark.parametrize(("text", "of"), KINDS)
def test_round_trip(text: str, of: str) -> None:
    tower = dict(zip(TEXTS, itertools.cycle(TOWERS)))[text]
    config = tiny(text, tower, list(CONNECTORS.values())[len(text) % 2])
    state = random_state(config)
    table = (
        molmo_names.released(config)
        if of == "released"
        else molmo_names.reference(config, "llama" if of == "llama" else None)
    )
    assert sorted(name for rule in table for name in rule.ours) == sorted(state)
    theirs = dict(rename.to_theirs(table, state.__getitem__))
    found = molmo_names.detect(config, theirs)
    assert [(rule.ours, rule.theirs) for rule in found] == [
        (rule.ours, rule.theirs) for rule in table
    ]
    back = dict(rename.to_ours(found, theirs.__getitem__))
    assert set(back) == set(state) and all(torch.equal(back[name], state[name]) for name in state)


def test_orders_of_fused_rows() -> None:
    """q, k, v and up, gate: the order of the reference, which names alone do not show."""
    config = tiny("qwen2")
    state = random_state(config)
    theirs = dict(rename.to_theirs(molmo_names.released(config), state.__getitem__))
    block, ours = "model.transformer.blocks.1.", "layers.1."
    assert torch.equal(
        theirs[block + "att_proj.weight"][32:48], state[ours + "self_attn.k_proj.weight"]
    )
    assert torch.equal(theirs[block + "att_proj.bias"][48:], state[ours + "self_attn.v_proj.bias"])
    assert torch.equal(theirs[block + "ff_proj.weight"][:44], state[ours + "mlp.up_proj.weight"])
    assert torch.equal(theirs[block + "ff_proj.weight"][44:], state[ours + "mlp.gate_proj.weight"])
    moe = tiny("olmoe")
    state = random_state(moe)
    theirs = dict(rename.to_theirs(molmo_names.reference(moe), state.__getitem__))
    mlp = "transformer.blocks.0.ffn.experts.mlp."
    gate_up, down = (
        state["layers.0.mlp.experts.gate_up_proj"],
        state["layers.0.mlp.experts.down_proj"],
    )
    assert torch.equal(theirs[mlp + "w1"][16:32], gate_up[1, :16]) and torch.equal(
        theirs[mlp + "v1"][:16], gate_up[0, 16:]
    )
    assert torch.equal(theirs[mlp + "w2"][80:], down[5].T)
    released = dict(rename.to_theirs(molmo_names.released(moe), state.__getitem__))
    expert = "model.transformer.blocks.0.mlp.experts.3."
    assert torch.equal(released[expert + "up_proj.weight"], gate_up[3, 16:])
    assert torch.equal(released[expert + "down_proj.weight"], down[3])
    assert {"lm_head.weight", "model.transformer.blocks.0.attn.att_proj.weight"} <= set(released)


def keys_that_vllm_reads(
    layers: int, width: int, kv: int, mlp: int, rows: int
) -> dict[str, list[int]]:
    """Names and shapes of a CLIP Molmo on Qwen2, written from facts/hub.md and vLLM's molmo.py, not from our tables."""
    vit, out = "model.vision_backbone.image_vit.", {}
    out |= {vit + "class_embedding": [1024], vit + "positional_embedding": [577, 1024]}
    out |= {
        vit + "patch_embedding.weight": [1024, 588],
        vit + "pre_ln.weight": [1024],
        vit + "pre_ln.bias": [1024],
    }
    for i in range(23):
        block = f"{vit}transformer.resblocks.{i}."
        shapes = {f"attention.w{p}": (1024, 1024) for p in "qkvo"}
        shapes |= {"feed_forward.w1": (4096, 1024), "feed_forward.w2": (1024, 4096)}
        for name, shape in shapes.items():
            out |= {f"{block}{name}.weight": list(shape), f"{block}{name}.bias": [shape[0]]}
        for name in ("attention_norm", "ffn_norm"):
            out |= {f"{block}{name}.weight": [1024], f"{block}{name}.bias": [1024]}
    connector = "model.vision_backbone."
    for p in "qkv":
        out |= {
            f"{connector}image_pooling_2d.w{p}.weight": [1024, 2048],
            f"{connector}image_pooling_2d.w{p}.bias": [1024],
        }
    out |= {
        connector + "image_pooling_2d.wo.weight": [1024, 1024],
        connector + "image_pooling_2d.wo.bias": [1024],
    }
    out |= {f"{connector}image_projector.w{i}.weight": [mlp, 1024] for i in (1, 3)}
    out |= {
        connector + "image_projector.w2.weight": [width, mlp],
        connector + "pad_embed": [2, 2048],
    }
    text = "model.transformer."
    for i in range(layers):
        block = f"{text}blocks.{i}."
        out |= {
            block + "att_proj.weight": [width + 2 * kv, width],
            block + "att_proj.bias": [width + 2 * kv],
        }
        out |= {
            block + "attn_out.weight": [width, width],
            block + "ff_proj.weight": [2 * mlp, width],
        }
        out |= {
            block + "ff_out.weight": [width, mlp],
            block + "attn_norm.weight": [width],
            block + "ff_norm.weight": [width],
        }
    out |= {text + "wte.embedding": [rows, width], text + "wte.new_embedding": [128, width]}
    return out | {text + "ln_f.weight": [width], text + "ff_out.weight": [rows, width]}


@pytest.mark.parametrize("preset", ["molmo_7b_d", "molmo_72b"])
def test_keys_that_vllm_reads(preset: str) -> None:
    config = presets.get(preset)
    assert not_servable(config) is None
    shapes = shapes_of(config)
    table = molmo_names.released(config)
    meta = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    ours = {key: list(t.shape) for key, t in rename.to_theirs(table, meta.__getitem__)}
    sizes = {
        "molmo_7b_d": (28, 3584, 512, 18944, 152064),
        "molmo_72b": (80, 8192, 1024, 29568, 152064),
    }[preset]
    assert ours == keys_that_vllm_reads(*sizes)
    assert preset != "molmo_7b_d" or len(ours) == 585
    parameters = {"molmo_7b_d": 8_021_025_280, "molmo_72b": 73_308_285_952}[preset]
    assert sum(torch.Size(shape).numel() for shape in ours.values()) == parameters


def test_what_vllm_cannot_serve() -> None:
    assert not_servable(presets.get("molmo_7b_o")) is None
    for name in (
        "molmo_7b_d/siglip",
        "molmo_7b_d/dinov2",
        "molmo_7b_d/metaclip",
        "molmoe_1b",
        "tiny",
    ):
        assert not_servable(presets.get(name)) is not None


def test_position_table_of_the_converter() -> None:
    """The reference resizes DINOv2's table at conversion by (grid + 0.1) / old grid, bicubic, without antialias."""

    vision = TOWERS["dinov2"]  # 9 x 9 positions, 6 x 6 patches
    table = torch.randn(82, 32, generator=torch.Generator().manual_seed(1))
    assert resized_positions(table, vision) is table
    out = resized_positions(table, replace(vision, num_positions=36))
    assert out.shape == (37, 32) and torch.equal(out[0], table[0])
    grid = table[1:].view(9, 9, 32).permute(2, 0, 1)[None]
    want = F.interpolate(grid, scale_factor=6.1 / 9, mode="bicubic", recompute_scale_factor=False)[
        0
    ]
    torch.testing.assert_close(out[1:], want.permute(1, 2, 0).reshape(36, 32))
    exact = F.interpolate(grid, (6, 6), mode="bicubic")[0].permute(1, 2, 0).reshape(36, 32)
    assert (exact - out[1:]).abs().max() > 1e-3
