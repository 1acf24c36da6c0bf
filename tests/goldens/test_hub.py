"""The convert tool on the reference's own checkpoints and on a folder in the released format."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from golden_files import MISSING, folder, model_kinds, need, read_json, read_tensors
from golden_models import column_step, read_batch, read_config

from molmo_ds.hub import load
from molmo_ds.hub.export import to_hub
from molmo_ds.model.families import molmo_names
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights import rename
from molmo_ds.weights.tensor_files import TensorFolder


@pytest.mark.parametrize("kind", model_kinds())
def test_from_reference_and_to_hub(kind: str, tmp_path: Path) -> None:
    config = load.from_reference(need(f"A_model/{kind}"), tmp_path / "ours", ("images.exact=true",))
    want = read_config(kind)
    assert replace(config, text=replace(config.text, model_type="qwen2")) == replace(
        want,
        text=replace(want.text, model_type="qwen2"),
        vision=replace(want.vision, num_positions=config.vision.num_positions),
    )
    to_hub(tmp_path / "ours", tmp_path / "hub")
    hub = TensorFolder(tmp_path / "hub")
    state = read_tensors(f"A_model/{kind}/state_dict.safetensors")
    ours = dict(rename.to_ours(molmo_names.released(config), hub.read))
    back = dict(rename.to_theirs(molmo_names.detect(config, state), ours.__getitem__))
    assert set(back) == set(state) and all(
        torch.equal(back[key].float(), state[key]) for key in state
    )
    if not config.text.num_experts:  # released keys are the reference's with another beginning
        fused = {
            key
            for key in state
            if "q_proj" not in key and "k_proj" not in key and "v_proj" not in key
        }
        assert {
            "model." + key for key in fused if "ff_proj1" not in key and "ff_proj2" not in key
        } <= set(hub.names())


def released_kinds() -> list[str]:
    """The models that are there in the released format as well."""
    there = [path.parent.parent.name for path in folder().glob("A_model/*/hf/config.json")]
    return sorted(there) or [f"{MISSING}A_model/*/hf/config.json"]


@pytest.mark.parametrize("kind", released_kinds())
def test_released_folder(kind: str, tmp_path: Path) -> None:
    """Logits of the reference from a folder whose config.json says nothing of the tower."""
    want = read_config(kind)
    vision = want.vision
    images = want.images
    say = [f"vision.{name}={getattr(vision, name)}" for name in (
        "model_type", "image_size", "patch_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "hidden_act", "layer_norm_eps", "num_positions",
    )]  # fmt: skip
    say += [
        f"vision.feature_layers={list(vision.feature_layers)}",
        f"images.overlap_margins={list(images.overlap_margins)}",
    ]
    say += [f"images.max_crops={images.max_crops}", "images.exact=true"]
    config = load.from_hub(need(f"A_model/{kind}/hf"), tmp_path / "ours", tuple(say))
    assert config == want
    weights = TensorFolder(tmp_path / "ours")
    model = Molmo(config).eval()
    model.load_state_dict({name: weights.read(name).float() for name in weights.names()})
    for name, about in read_json(f"A_model/{kind}/meta.json")["batches"].items():
        batch, tensors, _ = read_batch(kind, name)
        assert "out.logits_cols" in about["shape"]
        with torch.no_grad():
            logits = model.logits(batch)
        valid = tensors["in.input_ids"] != -1
        columns = tensors["out.logits_cols"]
        step = column_step(logits.shape[-1], columns.shape[-1])
        torch.testing.assert_close(logits[..., ::step][valid], columns[valid], atol=1e-4, rtol=0)
