"""Pictures to crops for transformers: the image processor that training used, with the released models' attributes."""

import dataclasses
from typing import Any

import torch
from transformers import BatchFeature, ImageProcessingMixin
from transformers.processing_utils import ImagesKwargs

from molmo_ds.architecture import PIXEL_STATISTICS
from molmo_ds.architecture import MolmoConfig as Architecture
from molmo_ds.data.sample.pictures.images import Crops, ImageProcessor
from molmo_ds.hub.remote.batches_molmo import pad_crops
from molmo_ds.hub.remote.config_molmo import build
from molmo_ds.hub.remote.inputs_molmo import listed, read_picture


class MolmoImageProcessor(ImageProcessingMixin):
    """Crops as float32 patches, normalised as the released models' own processor does.

    `molmo_ds` is the architecture as a dictionary; the other attributes repeat parts of it for servers that read them.
    """

    valid_kwargs = ImagesKwargs
    model_input_names = ["images", "image_masks", "image_input_idx"]

    def __init__(
        self, molmo_ds: dict[str, Any] | None = None, max_crops: int | None = None, **others: Any
    ) -> None:
        architecture = build(Architecture, molmo_ds or {})
        most = architecture.images.max_crops if max_crops is None else max_crops
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= 36:
            raise ValueError(f"max_crops is {most!r}; it is a whole number from 1 to 36.")
        images = dataclasses.replace(architecture.images, exact=True, max_crops=most)
        self._crop = ImageProcessor(dataclasses.replace(architecture, images=images))
        geometry = self._crop.geometry
        own = {
            "molmo_ds": molmo_ds or {},
            "max_crops": geometry.max_crops,
            "overlap_margins": list(geometry.margins),
            "base_image_input_size": [geometry.image_size] * 2,
            "image_token_length_h": geometry.pooled,
            "image_token_length_w": geometry.pooled,
            "image_patch_size": geometry.patch_size,
            "image_padding_mask": True,
            "do_normalize": True,
            "image_mean": list(PIXEL_STATISTICS[images.resize][0]),
            "image_std": list(PIXEL_STATISTICS[images.resize][1]),
        }
        super().__init__(**(others | own))

    def to_dict(self) -> dict[str, Any]:
        """The content of preprocessor_config.json."""
        crop = self._crop
        self._crop = None
        try:
            return {key: value for key, value in super().to_dict().items() if key != "_crop"}
        finally:
            self._crop = crop

    def __call__(
        self, images: Any, max_crops: int | None = None, return_tensors: str | None = "pt"
    ) -> BatchFeature:
        """A picture or a list of B pictures, of every kind that `read_picture` takes -> their crops.

        Returns:
            images float32 [B, n, P, patch * patch * 3] and image_masks [B, n, P], -1 throughout in crops that pad;
            image_input_idx int64 [B, n, Q], counted from the first token of each picture, -1 = nowhere.
        """
        if return_tensors not in ("pt", None):
            raise ValueError(f"return_tensors is '{return_tensors}'; only 'pt' is supported.")
        given = listed(images)
        made = [
            self.crops(one, max_crops) for one in (given if isinstance(given, list) else [given])
        ]
        if not made:
            raise ValueError("The list of pictures is empty; give at least one picture.")
        rows = [
            {
                "images": crops.images,
                "image_masks": crops.masks,
                "image_input_idx": torch.from_numpy(crops.layout.positions),
            }
            for crops in made
        ]
        return BatchFeature(pad_crops(rows))

    preprocess = __call__  # its name in transformers' own classes

    def crops(self, picture: Any, max_crops: int | None = None) -> Crops:
        """One picture, of any kind that `read_picture` takes -> its crops, masks and layout.

        Raises ValueError where it cannot be read, or max_crops is no number from 1 to 36.
        """
        if max_crops is not None and max_crops != self.max_crops:
            return MolmoImageProcessor(self.molmo_ds, max_crops).crops(picture)
        return self._crop(read_picture(picture))
