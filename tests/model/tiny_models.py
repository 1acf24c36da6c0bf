"""Tiny random models of every family and batches for them."""

from dataclasses import replace

import torch
from torch import Tensor

from molmo_ds import presets
from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, learnt_rows_of, windows_of
from molmo_ds.model.molmo import Molmo

WORDS = 96
SMALL = {"vocab_size": WORDS, "embedding_size": WORDS, "hidden_size": 32, "intermediate_size": 48}
SMALL |= {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
FAMILIES = {
    "qwen2": {"model_type": "qwen2"},
    "llama": {
        "model_type": "llama",
        "attention_bias": False,
        "rope_scaling": LLAMA3,
        "tie_word_embeddings": True,
    },
    "olmo": {"model_type": "olmo", "attention_bias": False, "norm_type": "layer", "clip_qkv": 1.0},
    "olmo2": {"model_type": "olmo2", "attention_bias": False, "qk_norm": True, "norm_after": True},
    "olmoe": {
        "model_type": "olmoe",
        "attention_bias": False,
        "qk_norm": True,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    },
}
IMAGE = WORDS + 2  # the image token


def config(family: str = "qwen2", **text: object) -> MolmoConfig:
    """28 px crops of 4 x 4 patches, 2 x 2 pooled; blocks 0 and 1 of 3 are features."""
    base = presets.tiny()
    vision = replace(
        base.vision,
        image_size=28,
        patch_size=7,
        num_hidden_layers=3,
        hidden_size=32,
        intermediate_size=48,
        feature_layers=(-2, -3),
        initializer_range=0.2,
    )
    connector = replace(base.connector, initializer_range=0.2)
    text = replace(base.text, **{**SMALL, **FAMILIES[family], **text})
    return replace(base, text=text, vision=vision, connector=connector)


def model(
    family: str = "qwen2", seed: int = 0, checkpointing: str = "none", **text: object
) -> Molmo:
    """In eval mode, with random weights."""
    made = Molmo(config(family, **text), checkpointing=checkpointing)
    made.reset_parameters(seed)
    return made.eval()


def document(
    crops: int, branches: list[int], seed: int = 0, prefix_text: int = 3
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(token tensors [t], uint8 crops [n, 28, 28, 3], token positions [n, 4]): BOS, crops, text, then branches."""
    source = torch.Generator().manual_seed(seed)
    prefix = 1 + 4 * crops + prefix_text
    lengths = [prefix, *branches]
    tokens = {
        "input_ids": torch.randint(0, WORDS, (sum(lengths),), generator=source),
        "labels": torch.randint(0, WORDS, (sum(lengths),), generator=source),
        "position_ids": torch.cat(
            [torch.arange(n) + (prefix if i else 0) for i, n in enumerate(lengths)]
        ),
        "branch_ids": torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(
            torch.tensor(lengths)
        ),
        "loss_weights": torch.rand(sum(lengths), generator=source)
        * (torch.arange(sum(lengths)) >= prefix - 2),
    }
    positions = torch.arange(4 * crops).view(crops, 4) + 1
    tokens["input_ids"][positions.flatten()] = IMAGE
    images = torch.randint(0, 256, (crops, 28, 28, 3), generator=source, dtype=torch.uint8)
    return tokens, images, positions


def pack(
    rows: list[list[tuple[dict[str, Tensor], Tensor, Tensor]]], length: int | None = None
) -> Batch:
    """Rows of documents as a Batch, padded to the longest (or `length`); without crops there is a blank one."""
    length = length or max(sum(len(tokens["input_ids"]) for tokens, *_ in row) for row in rows)
    kinds = {
        "input_ids": torch.int64,
        "labels": torch.int64,
        "position_ids": torch.int64,
        "branch_ids": torch.int32,
    }
    kinds |= {"document_ids": torch.int32, "loss_weights": torch.float32}
    kinds |= {"image_ids": torch.int32}
    out = {name: torch.zeros(len(rows), length, dtype=kind) for name, kind in kinds.items()}
    images = [torch.zeros(0, 28, 28, 3, dtype=torch.uint8)]
    positions = [torch.zeros(0, 4, dtype=torch.int64)]
    for b, row in enumerate(rows):
        start = 0
        for number, (tokens, pictures, places) in enumerate(row, 1):
            end = start + len(tokens["input_ids"])
            for name, values in tokens.items():
                out[name][b, start:end] = values
            out["document_ids"][b, start:end] = number
            images.append(pictures)
            positions.append(torch.where(places < 0, -1, places + b * length + start))
            start = end
    crops = torch.cat(images)
    places = torch.cat(positions)
    if not len(crops):
        crops = torch.zeros(1, 28, 28, 3, dtype=torch.uint8)
        places = torch.full((1, 4), -1)
    # a crop brings its own mask along
    masks = (crops.flatten(1)[:, :16].float() / 100 - 1).clamp(-1, 1)
    learnt = learnt_rows_of(out["loss_weights"])
    pictures = {"images": crops, "image_masks": masks, "windows": windows_of(len(crops), 4, 2)}
    return Batch(image_positions=places.flatten(), learnt_rows=learnt, **pictures, **out)
