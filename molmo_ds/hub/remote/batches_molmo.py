"""The rows of a processor as one batch.

Shapes: B texts, n crops of a row.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

PICTURES = ("images", "image_input_idx", "image_masks")


def collate(rows: list[dict[str, Tensor]], pad: int, left: bool = True) -> dict[str, Tensor]:
    """Rows as `process` makes them -> tensors [B, ...]: text padded on one side, crops that pad are -1 throughout."""
    tokens = max(len(row["input_ids"]) for row in rows)
    sides = []  # of each row: tokens added before and after
    ids = []
    masks = []
    for row in rows:
        missing = tokens - len(row["input_ids"])
        side = (missing, 0) if left else (0, missing)
        sides.append(side)
        ids.append(F.pad(row["input_ids"], side, value=pad))
        masks.append(F.pad(torch.ones_like(row["input_ids"]), side))
    out = {"input_ids": torch.stack(ids), "attention_mask": torch.stack(masks)}
    seen = next((row for row in rows if "images" in row), None)
    if seen is None:
        return out
    nothing = {name: seen[name][:0] for name in PICTURES}
    moved = []
    for row, (before, _) in zip(rows, sides):
        row = nothing | row
        places = row["image_input_idx"]
        moved.append(row | {"image_input_idx": torch.where(places >= 0, places + before, places)})
    return out | pad_crops(moved)


def pad_crops(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The pictures of each row [n, ...] as tensors [B, most crops of a row, ...], -1 in crops that pad."""
    crops = max(len(row["images"]) for row in rows)
    out = {}
    for name in PICTURES:
        padded = []
        for row in rows:
            part = row[name]
            others = (0, 0) * (part.ndim - 1)
            padded.append(F.pad(part, (*others, 0, crops - len(part)), value=-1))
        out[name] = torch.stack(padded)
    return out
