"""Batches whose ranks hold unlike amounts: text only and 20 crops, one token learnt and all, one document and many.

Every size in `SIZES` lies on another side of some threshold of the kernels: products of matrices change library at
2**21 multiplications, attention changes its path at 128 tokens and with the number of documents.
"""

from dataclasses import dataclass, replace

import torch

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, learnt_rows_of, windows_of
from molmo_ds.config import COMPONENTS, RunConfig
from molmo_ds.data.order.packing import merge
from molmo_ds.testing import synthetic

SIZES = {
    "tokens": (8, 24, 130, 300),
    "crops": (0, 1, 2, 5, 20),
    "documents": (1, 2, 40),
    "learnt": (0.0, 0.01, 0.5, 1.0),
}
PATCHES = 64
POOLED = 16
SIDE = 56
RATE = 0.05  # of synthetic.config's learning rates


@dataclass(frozen=True)
class Shape:
    """Sizes of one sequence; more documents than tokens allow become fewer, and so do crops."""

    tokens: int
    crops: int
    documents: int
    learnt: float  # share of the tokens; what is above 0 makes at least one


def model(text: MolmoConfig) -> MolmoConfig:
    """The tower of the reference's small cases (64 patches, width 64, MLP 128) before the decoder of `text`, wider."""
    # wider layers, smaller weights: what rounds is not amplified
    first = {"initializer_range": 0.1}
    sizes = {
        "image_size": SIDE,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
    }
    inner = 48 if text.text.num_experts else 176
    decoder = replace(
        text.text, hidden_size=64, intermediate_size=inner, max_position_embeddings=512, **first
    )
    return replace(
        text,
        vision=replace(text.vision, **sizes, **first),
        connector=replace(text.connector, **first),
        text=decoder,
    )


def sequence(shape: Shape, seed: int) -> Batch:
    """One packed sequence of that shape: documents of a prefix and, after it, branches of 5 tokens.

    Labels of image tokens, which lie beyond the head's words, stand where nothing is learnt.
    """
    random = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *size: int) -> torch.Tensor:
        return torch.randint(low, high, size, generator=random)

    length = shape.tokens
    count = min(shape.documents, length // 2)
    document = torch.arange(length) * count // length
    start = torch.searchsorted(document, document)
    inside = torch.arange(length) - start
    behind = inside - 3
    branch = torch.where(behind < 0, 0, behind // 5 + 1)
    labels = integers(0, 104, length)
    weights = (
        torch.rand(length, generator=random)
        * 2
        * (torch.rand(length, generator=random) < shape.learnt)
    )
    if shape.learnt:
        weights[length // 2] = 0.7
        labels[length // 2] = 3
    weights[labels >= 96] = 0
    crops = min(shape.crops, length)
    positions = torch.full((crops, POOLED), -1)  # the other features go nowhere
    positions[:, 0] = torch.randperm(length, generator=random)[:crops]
    return Batch(
        input_ids=integers(0, 104, length)[None],
        labels=labels[None],
        loss_weights=weights[None],
        position_ids=torch.where(behind < 0, inside, 3 + behind % 5)[None],
        document_ids=(document + 1).int()[None],
        branch_ids=branch.int()[None],
        images=integers(0, 256, crops, SIDE, SIDE, 3).to(torch.uint8),
        image_masks=integers(0, 3, crops, PATCHES) / 2,
        windows=windows_of(crops, 8, 2),
        image_positions=positions.flatten(),
        learnt_rows=learnt_rows_of(weights[None]),
    )


def lanes(shapes: list[list[Shape]], step: int) -> list[Batch]:
    """The sequences of a step (from 1), whose shapes are `shapes[step - 1]`, each a batch of its own."""
    return [
        merge([sequence(shape, 1000 * step + lane)]) for lane, shape in enumerate(shapes[step - 1])
    ]


def micro_batches(
    run: RunConfig, shapes: list[list[Shape]], step: int, rank: int, size: int
) -> list[Batch]:
    """This rank's share of `lanes`, in micro-batches of run.micro_batch."""
    share = len(shapes[step - 1]) // size
    mine = [
        sequence(shape, 1000 * step + lane)
        for lane, shape in enumerate(shapes[step - 1])
        if lane // share == rank
    ]
    return [merge(mine[i : i + run.micro_batch]) for i in range(0, share, run.micro_batch)]


def extremes(count: int, steps: int) -> list[list[Shape]]:
    """Shapes of `steps` steps of `count` sequences: neighbours lie far apart, and each step turns them on."""
    far = [
        Shape(24, 2, 2, 0.5),
        Shape(300, 5, 1, 1.0),
        Shape(8, 0, 1, 0.01),
        Shape(130, 20, 40, 0.5),
        Shape(300, 0, 40, 0.0),
        Shape(24, 5, 1, 1.0),
    ]
    return [[far[(lane + step) % len(far)] for lane in range(count)] for step in range(steps)]


def run_config(
    text: MolmoConfig, strategy: str, steps: int, sequences: int, micro_batch: int = 1
) -> RunConfig:
    """A run over such batches under SGD without clipping, at rates that do not amplify rounding."""
    base = synthetic.config(model=model(text), strategy=strategy)
    parts = {part: getattr(base.optim, part) for part in COMPONENTS}
    slower = {part: replace(settings, lr=RATE * settings.lr) for part, settings in parts.items()}
    optim = replace(base.optim, **slower)
    return replace(
        base, optim=optim, global_batch=sequences, micro_batch=micro_batch, max_steps=steps
    )
