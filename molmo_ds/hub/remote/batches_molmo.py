"""The rows of a processor as one batch.

Shapes: B texts, n crops of a row.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


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
    crops = max(len(row["images"]) for row in rows if "images" in row)
    for name in ("images", "image_input_idx", "image_masks"):
        parts = []
        for row, (before, _) in zip(rows, sides):
            part = row.get(name, seen[name][:0])
            if name == "image_input_idx":
                part = torch.where(part >= 0, part + before, part)
            parts.append(F.pad(part, (0, 0) * (part.ndim - 1) + (0, crops - len(part)), value=-1))
        out[name] = torch.stack(parts)
    return out
