"""Batches of random pictures and words for a training step: the reference's, message trees and single ones."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, Sample, windows_of
from molmo_ds.data.order.packing import choose, collate
from molmo_ds.testing.text_sample import text_sample


@dataclass(frozen=True)
class Work:
    """The same pictures and annotations as message trees and alone, and the name of that step."""

    name: str
    packed: list[Batch]
    padded: list[Batch]
    annotations: int


def picture(
    config: MolmoConfig, crops: int, source: np.random.RandomState
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random uint8 crops [n, H, W, 3], and the token [n * Q] of every window (BOS, then all of them)."""
    side = config.vision.image_size
    pooled = (-(-side // config.vision.patch_size // config.connector.pooling_size)) ** 2
    images = torch.from_numpy(source.randint(0, 256, (crops, side, side, 3), dtype=np.uint8))
    return images, torch.arange(crops * pooled) + 1


def sample(
    config: MolmoConfig, crops: int, branches: list[tuple[int, int]], source: np.random.RandomState
) -> Sample:
    """A picture with branches of (question, answer) tokens; one branch alone is a plain example."""
    images, positions = picture(config, crops, source)
    prefix, words = positions.numel() + 1, config.text.vocab_size
    lengths = [prefix, *(q + a for q, a in branches)]
    ids = torch.from_numpy(source.randint(0, words, sum(lengths)))
    ids[positions] = words + 2
    weights = [torch.zeros(prefix)]
    for question, answer in branches:
        weights.append(torch.cat((torch.zeros(question - 1), torch.ones(answer), torch.zeros(1))))
    places = [torch.arange(n) + (prefix if i else 0) for i, n in enumerate(lengths)]
    numbers = torch.arange(len(lengths), dtype=torch.int32).repeat_interleave(torch.tensor(lengths))
    grid = config.vision.image_size // config.vision.patch_size
    masks = torch.ones(crops, grid**2)
    pictured = torch.zeros(len(ids), dtype=torch.int32).index_fill(0, positions, 1)
    labels = torch.from_numpy(source.randint(0, words, len(ids)))
    return replace(
        text_sample(ids),
        labels=labels,
        loss_weights=torch.cat(weights),
        position_ids=torch.cat(places),
        branch_ids=numbers,
        image_ids=pictured,
        images=images,
        image_masks=masks,
        windows=windows_of(crops, grid, config.connector.pooling_size),
        image_positions=positions,
    )


def reference_batches(config: MolmoConfig, rows: int, tokens: int, crops: int) -> list[Batch]:
    """One step: sequences without padding whose last 600 (of 1024) tokens are learnt."""
    source = np.random.RandomState(0)
    prefix = picture(config, crops, source)[1].numel() + 1
    learnt = min(tokens * 600 // 1024, tokens - prefix - 1)
    built = [
        [sample(config, crops, [(tokens - prefix - learnt, learnt)], source)] for _ in range(rows)
    ]
    return [collate(built, tokens)]


def tree_batches(
    config: MolmoConfig, crops: int, pool: int, annotations: int, rows: int, tokens: int = 2048
) -> tuple[list[Batch], list[Batch], list[Batch]]:
    """One step as packed message trees, as trees of a padded row each, and as padded rows of one branch.

    All of the same pictures and annotations. As in the stream of data a sequence takes what fills it best of a pool;
    what is left of the pool is in none.
    """
    # short questions; an answer is a word, some points or a sentence
    lengths = np.random.RandomState(0)
    branches = [
        [(lengths.randint(6, 16), lengths.randint(2, 40)) for _ in range(annotations)]
        for _ in range(pool)
    ]
    prefix = picture(config, crops, np.random.RandomState(0))[1].numel() + 1
    left = [
        (number, [prefix + sum(q + a for q, a in each), crops])
        for number, each in enumerate(branches)
    ]
    packed, alone, single = [], [], []
    for _ in range(rows):
        taken = choose([size for _, size in left], tokens, 1000)
        numbers = [left[i][0] for i in taken]
        left = [one for i, one in enumerate(left) if i not in taken]
        trees = [sample(config, crops, branches[n], np.random.RandomState(n)) for n in numbers]
        packed.append(collate([trees], tokens))
        alone += trees
        single += [
            sample(config, crops, [b], np.random.RandomState(n))
            for n in numbers
            for b in branches[n]
        ]
    return packed, padded(alone), padded(single)


def padded(samples: list[Sample], rows: int = 4) -> list[Batch]:
    """A row each, padded to the longest of all, `rows` at a time."""
    longest = max(len(one.input_ids) for one in samples)
    return [
        collate([[one] for one in samples[i : i + rows]], longest)
        for i in range(0, len(samples), rows)
    ]


def even_work(
    config: MolmoConfig, rows: int, tokens: int, pictures: int, crops: int, annotations: int
) -> Work:
    """One step of `rows` sequences that are filled to the end by trees of equal size; the padded rows, as many at a
    time, are equally long too, which is the best that can happen to them."""
    source = np.random.RandomState(0)
    prefix = picture(config, crops, source)[1].numel() + 1
    each = (tokens // pictures - prefix) // annotations
    if each < 3:
        raise ValueError(
            f"{tokens} tokens have no room for {pictures} pictures of {crops} crops; use fewer crops."
        )
    branch = (each // 3, each - each // 3)
    packs = [
        [sample(config, crops, [branch] * annotations, source) for _ in range(pictures)]
        for _ in range(rows)
    ]
    number = rows * pictures * annotations
    single = [[sample(config, crops, [branch], source)] for _ in range(number)]
    padded = [collate(single[i : i + 4], prefix + each) for i in range(0, number, 4)]
    return Work(
        f"{rows} x {tokens}, {annotations} annotations a picture",
        [collate(packs, tokens)],
        padded,
        number,
    )
