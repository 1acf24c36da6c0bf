"""A micro model and made-up batches: unequal token counts, message trees, sequences without pictures.

Tokens lie as the collator writes them: documents ascend, in each the prefix comes first and then its branches.
"""

from dataclasses import replace

import torch

from molmo_ds.architecture import (
    ConnectorConfig,
    ImageConfig,
    MolmoConfig,
    TextConfig,
    VisionConfig,
)
from molmo_ds.batch import Batch, learnt_rows_of, windows_of
from molmo_ds.config import ComponentConfig, OptimConfig, RunConfig
from molmo_ds.data.order.packing import merge
from molmo_ds.testing import videos

MODEL = MolmoConfig(
    text=TextConfig(
        model_type="qwen2",
        vocab_size=96,
        embedding_size=96,
        additional_vocab_size=8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_theta=1e4,
        max_position_embeddings=64,
        initializer_range=0.2,
    ),
    vision=VisionConfig(
        model_type="clip",
        image_size=28,
        patch_size=7,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        feature_layers=(-2, -3),
        initializer_range=0.2,
    ),
    connector=ConnectorConfig(initializer_range=0.2),
    images=ImageConfig(crop_mode="resize", max_crops=1),
)
LENGTH = 24
PREFIX = 5
PATCHES = 16
POOLED = 4


def config(**changes) -> RunConfig:
    """A run of the micro model with three learning rates; SGD without clipping unless `optim` says otherwise."""
    optim = OptimConfig(
        name="sgd",
        connector=ComponentConfig(lr=0.2, warmup_steps=2),
        vision=ComponentConfig(lr=0.05, warmup_steps=3),
        text=ComponentConfig(lr=0.1, warmup_steps=1),
        max_grad_norm=0.0,
    )
    base = RunConfig(
        model=MODEL, optim=optim, global_batch=8, micro_batch=1, max_steps=20, async_save=False
    )
    return replace(base, **changes)


def adamw(**changes) -> RunConfig:
    """The same under AdamW with clipping that acts; rates, betas and eps differ by component."""
    optim = replace(
        config().optim,
        name="adamw",
        connector=ComponentConfig(lr=1e-2, warmup_steps=2, betas=(0.7, 0.99), eps=1e-5),
        vision=ComponentConfig(lr=3e-3, warmup_steps=3, weight_decay=0.1, betas=(0.85, 0.9)),
        text=ComponentConfig(lr=5e-3, warmup_steps=1),
        max_grad_norm=0.5,
    )
    return config(optim=optim, **changes)


def sequence(step: int, lane: int) -> Batch:
    """The packed sequence of one lane at one step: up to two documents, loss weights between 0 and 2."""
    random = torch.Generator().manual_seed(1000 * step + lane)

    def integers(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=random)

    used = int(integers(6, LENGTH + 1, 1))
    first = int(integers(5, used + 1, 1))
    places = torch.arange(LENGTH)
    documents = torch.where(places < first, 1, torch.where(places < used, 2, 0)).int()
    inside = (places - first * (documents == 2)) * (documents > 0)
    behind = inside - PREFIX  # branches of 4 tokens, the last one shorter
    branches = torch.where(behind < 0, 0, behind // 4 + 1).int()
    weights = (
        torch.rand(LENGTH, generator=random)
        * 2
        * (documents > 0)
        * (torch.rand(LENGTH, generator=random) < 0.6)
    )
    # with two ranks one has no picture at all
    crops = 0 if (lane + 4 * step) % 8 < 4 else 1 + lane % 2
    if lane == 5:
        weights = torch.zeros(LENGTH)  # a sequence of which nothing is learnt
    positions = torch.full((max(crops, 1), POOLED), -1)
    if crops:
        positions[0] = torch.arange(POOLED)
    ids = integers(0, 104, LENGTH) * (documents > 0)
    masks = integers(0, 3, max(crops, 1), PATCHES) / 2
    return Batch(
        input_ids=ids[None],
        labels=integers(0, 96, LENGTH)[None],
        loss_weights=weights[None],
        position_ids=torch.where(behind < 0, inside, PREFIX + behind % 4)[None],
        document_ids=documents[None],
        branch_ids=branches[None],
        images=integers(0, 256, max(crops, 1), 28, 28, 3).to(torch.uint8),
        image_masks=masks,
        windows=windows_of(max(crops, 1), 4, 2),
        image_positions=positions.flatten(),
        learnt_rows=learnt_rows_of(weights[None]),
    )


def sequence_of(run: RunConfig, step: int, lane: int) -> Batch:
    """The sequence of a lane for the family of the run's model."""
    if run.model.family == "molmo2":
        return videos.sequence(step, lane, run.model.text.image_attention)
    return sequence(step, lane)


def micro_batches(run: RunConfig, step: int, rank: int, size: int) -> list[Batch]:
    """This rank's share of a step: lane l belongs to rank l // (global_batch / size)."""
    per_rank = run.global_batch // size
    lanes = range(rank * per_rank, (rank + 1) * per_rank)
    parts = [sequence_of(run, step, lane) for lane in lanes]
    return [merge(parts[i : i + run.micro_batch]) for i in range(0, per_rank, run.micro_batch)]
