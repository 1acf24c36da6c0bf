"""What decides a sample's tokens is hashed as earlier releases hashed it, so that their runs go on."""

import dataclasses
import hashlib

import pytest

from molmo_ds import presets
from molmo_ds.config import RunConfig
from molmo_ds.data.sample.pictures.images import ImageProcessor
from molmo_ds.data.sample.source_settings import decisive


def said(config: RunConfig) -> str:
    return decisive(config, ImageProcessor(config.model).geometry)


@pytest.mark.parametrize(
    ("preset", "earlier"), [("molmo_7b_d", "5be98431c40c85b8"), ("molmo2_8b", "bd33b9f01662cdbf")]
)
def test_new_settings_leave_old_hashes_alone(preset: str, earlier: str) -> None:
    """As 71fae6d made them."""
    config = dataclasses.replace(RunConfig(), model=presets.get(preset))
    assert hashlib.sha256(said(config).encode()).hexdigest()[:16] == earlier
    fewer = dataclasses.replace(config.model.images, several_max_crops=3)
    cut = dataclasses.replace(config, model=dataclasses.replace(config.model, images=fewer))
    assert said(cut) != said(config)
