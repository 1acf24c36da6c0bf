"""The configuration of a folder of others: read, dispatched to its family, overridden."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from molmo_ds import presets
from molmo_ds.architecture import ImageConfig, MolmoConfig, TextConfig, VisionConfig
from molmo_ds.model import families
from molmo_ds.settings import changed, in_sentences

# last layers that are not built; the layers taken are counted from the end of those that are
NOT_BUILT = {"clip": 1, "siglip2": 2}


def override(config: MolmoConfig, changes: list[str] | tuple[str, ...]) -> MolmoConfig:
    """Apply `text.hidden_size=64` overrides; ValueError for a key that does not exist or a wrong value."""
    return changed(config, [change.removeprefix("model.") for change in changes])


@in_sentences("The model's configuration")
def text_config(values: dict[str, Any]) -> TextConfig:
    """The config.json of a language model of transformers as a TextConfig; ValueError for a family that is not here."""
    return families.decoder(values.get("model_type")).text_config(values)


def fitted(text: TextConfig, preset: str, folder: Path) -> TextConfig:
    """The decoder of a preset, if a folder's language model has its sizes.

    The folder may have fewer rows of the embedding (the missing ones are drawn); positions, first weights, a tied head
    and what tokens of pictures see are the preset's. Raises ValueError for every other difference.
    """
    wanted = presets.get(preset).text
    free = {"max_position_embeddings", "initializer_range", "tie_word_embeddings", "vocab_size"}
    free |= {"embedding_size", "additional_vocab_size", "image_attention"}
    mine = asdict(replace(wanted, head_dim=wanted.head_width))
    theirs = asdict(replace(text, head_dim=text.head_width))
    different = [name for name in mine if name not in free and mine[name] != theirs[name]]
    if text.embedding_size > wanted.embedding_size:
        different.append("embedding_size")
    if different:
        name = different[0]
        raise ValueError(
            f"{folder} is not the language model of the preset {preset}: its {name} is "
            f"{theirs[name]}, not {mine[name]}."
        )
    return wanted


def base_of(preset: str, tower: str) -> MolmoConfig:
    """The architecture of a preset, with a tower where it takes one; Molmo's own for any other name.

    Args:
        tower: as `vision_config` takes it.
    """
    if preset not in presets.PRESETS:
        return MolmoConfig()
    name = "clip" if tower == "openai" else tower
    return presets.get(f"{preset}/{name}" if preset in presets.TOWERED else preset)


@in_sentences("The model's configuration")
def vision_config(values: dict[str, Any], name: str) -> tuple[VisionConfig, ImageConfig]:
    """The config.json of transformers' CLIP, SigLIP or DINOv2 as a tower, and how its crops are resized.

    Args:
        name: openai (or clip), metaclip, siglip, siglip2, dinov2: what decides the layers taken (of 23 of
            OpenAI's 24, of 25 of SigLIP 2's 27).
    """
    resize = "clip" if name == "openai" else name
    if resize not in presets.TOWERS:
        raise ValueError(
            f"There is no vision tower '{name}'; use openai, metaclip, siglip, siglip2 or dinov2."
        )
    base = presets.TOWERS[resize]
    part = values.get("vision_config") or {}  # of a model of text and pictures
    kind = str(part.get("model_type") or values.get("model_type")).removesuffix("_vision_model")
    if kind != base.model_type:
        raise ValueError(
            f"The vision tower '{name}' is a {base.model_type} model and the folder holds '{kind}'."
        )
    vision = families.tower(kind).vision_config(part or values, base)
    vision = replace(vision, num_hidden_layers=vision.num_hidden_layers - NOT_BUILT.get(resize, 0))
    return vision, ImageConfig(resize="siglip" if resize == "siglip2" else resize)
