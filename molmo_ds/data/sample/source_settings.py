"""What a source says of its samples: crops, roots of weights, and what of it is part of a fingerprint."""

import dataclasses
import json
from typing import Any

from molmo_ds.config import RunConfig, SourceConfig
from molmo_ds.data.sample.pictures.layout import Geometry


def of_samples(source: SourceConfig) -> SourceConfig:
    """What a source says of its samples, without its place and its share of the mixture."""
    return dataclasses.replace(
        source,
        path="",
        rate=None,
        group="all",
        size=None,
        sampling_rate=1.0,
        split_annotations=False,
    )


def decisive(config: RunConfig, geometry: Geometry) -> str:
    """What of a configuration decides a sample's tokens and crops, as JSON.

    Checkpoints hold its hash, so a setting that is new is left out where it changes nothing.
    """
    pictures = dataclasses.asdict(config.model.images)
    several = pictures.pop("several_max_crops")
    if several is not None and several < config.model.images.max_crops:
        pictures["several_max_crops"] = several
    said = [
        dataclasses.asdict(geometry),
        pictures,
        dataclasses.asdict(config.model.video),
        dataclasses.asdict(config.data.prompts),
    ]
    return json.dumps([said, config.data.sequence_length], sort_keys=True)


def hashed(source: SourceConfig) -> dict[str, Any]:
    """What of a source is part of a fingerprint, which older checkpoints hold: nothing that changes no tokens."""
    said = dataclasses.asdict(source)
    del said["split_annotations"]
    return said


def config_of_source(config: RunConfig, source: SourceConfig) -> RunConfig:
    """The configuration with the crops and the roots of a source that has its own."""
    images = config.model.images
    prompts = config.data.prompts
    if source.max_crops is not None:
        images = dataclasses.replace(images, max_crops=source.max_crops, several_max_crops=None)
    if source.root_subsegments is not None:
        prompts = dataclasses.replace(prompts, root_subsegments=source.root_subsegments)
    if source.root_length is not None:
        prompts = dataclasses.replace(prompts, root_length=source.root_length)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, images=images),
        data=dataclasses.replace(config.data, prompts=prompts),
    )
