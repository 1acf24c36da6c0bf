"""HeMolmo as its reference's captioner script makes it; no weights of it were ever released."""

from dataclasses import replace

from molmo_ds.architecture import ConnectorConfig, ImageConfig, MolmoConfig, SelectionConfig
from molmo_ds.presets.molmo import molmo_7b_d
from molmo_ds.presets.tiny import tiny


def hemolmo_7b_d(vision: str = "siglip2") -> MolmoConfig:
    """Qwen2-7B that reads a low resolution and 512 windows of the high one."""
    base = molmo_7b_d(vision)
    return MolmoConfig(
        family="hemolmo",
        text=replace(base.text, image_attention="within_image"),
        vision=base.vision,
        connector=ConnectorConfig(padding_embed="none", patch_row="learnt"),
        images=ImageConfig(
            resize=base.images.resize,
            max_crops=8 if vision.startswith("siglip") else 12,
            legacy_image_mask=False,
        ),
        selection=SelectionConfig(),
    )


def tiny_hemolmo() -> MolmoConfig:
    """`tiny` that reads 4 windows of a low resolution and 8 of up to 4 crops."""
    base = tiny()
    return replace(
        base,
        family="hemolmo",
        text=replace(base.text, image_attention="within_image"),
        connector=replace(base.connector, padding_embed="none", patch_row="learnt"),
        images=ImageConfig(
            resize="siglip", max_crops=4, overlap_margins=(1, 1), legacy_image_mask=False
        ),
        selection=SelectionConfig(picks=8),
    )
