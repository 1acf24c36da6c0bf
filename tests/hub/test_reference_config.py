"""Configurations of the reference that mean another network than ours are refused, not read as ours."""

from typing import Any

import pytest

from molmo_ds.model.families import molmo

TOWER = {
    "image_model_type": "siglip",
    "image_default_input_size": [98, 98],
    "image_patch_size": 14,
    "image_emb_dim": 32,
    "image_num_heads": 2,
    "image_num_layers": 3,
    "image_mlp_dim": 64,
    "image_num_pos": 49,
    "image_norm_eps": 1e-6,
    "image_mlp_activations": "gelu_pytorch_tanh",
    "resize_mode": "siglip",
}
MODEL = {
    "d_model": 32,
    "n_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 88,
    "vocab_size": 512,
    "vision_backbone": TOWER,
    "rope": True,
    "use_position_ids": True,
    "image_pooling_h": 2,
    "image_pooling_w": 2,
}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"rope": False}, "rope"),
        ({"use_position_ids": False}, "use_position_ids"),
        ({"image_pooling_w": 1}, "image_pooling_w"),
        ({"vision_backbone": TOWER | {"image_default_input_size": [98, 196]}}, "98 x 196"),
        ({"vision_backbone": TOWER | {"resize_mode": "torch-rng"}}, "torch-rng"),
    ],
)
def test_another_network_is_refused(changes: dict[str, Any], word: str) -> None:
    molmo.from_reference(MODEL)
    with pytest.raises(ValueError, match=rf"^[^\n]*{word}[^\n]*\.$"):
        molmo.from_reference(MODEL | changes)


def test_no_layers_are_the_last_block() -> None:
    assert molmo.from_reference(MODEL | {"vit_layers": None}).vision.feature_layers == (-1,)
    assert molmo.from_reference(MODEL).vision.feature_layers == (-3, -9)
