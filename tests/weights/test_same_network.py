"""Weights are refused by a network whose tensors have the same shapes and that would compute something else."""

import logging
from dataclasses import fields, replace

import pytest
import torch

from molmo_ds import presets
from molmo_ds.architecture import MolmoConfig
from molmo_ds.model.molmo import Molmo
from molmo_ds.weights.same_network import CHANGED, NETWORK, check_network

TINY = presets.tiny()
OTHER = {
    "text.num_attention_heads": 8,
    "text.num_key_value_heads": 4,
    "text.rms_norm_eps": 1e-5,
    "text.norm_after": True,
    "text.clip_qkv": 8.0,
    "vision.num_attention_heads": 8,
    "vision.hidden_act": "gelu",
    "vision.layer_norm_eps": 1e-6,
    "connector.pooling": "attention",
    "connector.pooling_mask": True,
    "connector.padding_embed": "none",
}
ANOTHER = {
    "text.rope_theta": 1e6,
    "text.image_attention": "image_tokens",
    "images.resize": "siglip",
    "images.use_col_tokens": False,
    "images.legacy_image_mask": False,
    "images.pad_value": 0.5,
}


def changed(key: str, value: object) -> MolmoConfig:
    """The tiny network with one setting changed."""
    part, name = key.split(".")
    return replace(TINY, **{part: replace(getattr(TINY, part), **{name: value})})


@pytest.mark.parametrize("key", OTHER)
def test_another_network_is_refused(key: str) -> None:
    sentence = f"init_from=w was trained with model.{key}="
    with pytest.raises(ValueError, match=sentence):
        check_network(TINY, changed(key, OTHER[key]), "w")


def test_other_features_are_refused() -> None:
    with pytest.raises(ValueError, match=r"features of the ViT's blocks \[3, 1\] \(not \[3, 2\]\)"):
        check_network(TINY, changed("vision.feature_layers", (-1, -3)), "w")
    check_network(TINY, changed("vision.feature_layers", (3, 2)), "w")


@pytest.mark.parametrize("key", ANOTHER)
def test_what_may_change_is_said(key: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_network(TINY, changed(key, ANOTHER[key]), "w")
    assert (
        f"init_from=w was trained with model.{key}={ANOTHER[key]}, and this run has" in caplog.text
    )


def test_like_networks_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    free = changed("text.attention_dropout", 0.1)
    check_network(TINY, replace(free, images=replace(free.images, max_crops=4)), "w")
    assert not caplog.text


def test_shapes_do_not_tell_heads_apart() -> None:
    """The pair that no check of shapes finds: twice the heads, half as wide."""
    text = replace(TINY.text, num_attention_heads=8, num_key_value_heads=4)
    with torch.device("meta"):
        two = [Molmo(one) for one in (TINY, replace(TINY, text=text))]
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in two]
    assert shapes[0] == shapes[1]
    with pytest.raises(ValueError, match=r"num_attention_heads=4 \(not 8\).*num_key_value_heads"):
        check_network(replace(TINY, text=text), TINY, "w")


def test_every_setting_named_is_one() -> None:
    for part, names in [*NETWORK.items(), *CHANGED.items()]:
        assert set(names) <= {one.name for one in fields(getattr(TINY, part))}
