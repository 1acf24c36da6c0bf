"""Made-up sequences of Molmo2: a picture whose windows join crops, several pictures, a video, text alone.

Crops are those of synthetic.MODEL: 28 pixels, 4 x 4 patches. Ids of special tokens follow its 96 words.
"""

import numpy as np
import torch

from molmo_ds.batch import Batch, learnt_rows_of
from molmo_ds.data.sample.pictures.image_ids import image_ids
from molmo_ds.data.sample.pictures.windows import joined, pool, single

WORDS = 96
SIDE = 4  # patches along a crop
IM_START, IM_END, IM_PATCH, LOW_RES, FRAME_START, FRAME_END = (
    WORDS + i for i in (0, 1, 2, 4, 7, 8)
)
KINDS = ("picture", "text", "video", "pictures")
QUESTION = 3  # tokens of a branch that are not learnt
ANSWER = 4


def picture() -> tuple[list[int], np.ndarray, int]:
    """(tokens, windows [10, 4], crops) of a global view and two crops side by side."""
    low = pool(single(SIDE), 2).reshape(-1, 4)
    high = pool(joined((1, 2), SIDE, (1, 1)), 2).reshape(-1, 4)
    tokens = [LOW_RES, *[IM_PATCH] * len(low), IM_END, IM_START, *[IM_PATCH] * len(high), IM_END]
    return tokens, np.concatenate([low, high]), 3


def frame() -> tuple[list[int], np.ndarray, int]:
    """(tokens, windows [4, 9], crops) of a frame, with its time before it."""
    windows = pool(single(SIDE), 3).reshape(-1, 9)
    return [7, 5, FRAME_START, *[IM_PATCH] * len(windows), FRAME_END], windows, 1


def sequence(step: int, lane: int, attention: str) -> Batch:
    """The packed sequence of one lane at one step: a document with branches, and a second one of text.

    Lanes of a step hold unlike kinds, so that ranks do.
    """
    random = torch.Generator().manual_seed(5000 + 1000 * step + lane)
    kind = KINDS[(lane + step) % len(KINDS)]
    shown = {
        "picture": [picture()],
        "text": [],
        "video": [frame()] * (3 + lane % 3),
        "pictures": [picture()] * 2,
    }[kind]
    ids = [1]
    windows = []
    crops = 0
    for tokens, here, count in shown:
        ids += tokens
        windows.append(np.where(here >= 0, here + crops * SIDE**2, -1))
        crops += count
    prefix = len(ids)
    branches = 1 + lane % 3
    lengths = [prefix, *[QUESTION + ANSWER] * branches, 6 + lane % 5]
    whole = sum(lengths)
    words = torch.randint(3, WORDS, (whole,), generator=random)
    words[:prefix] = torch.tensor(ids)
    inside = torch.cat([torch.arange(length) for length in lengths])
    part = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    last = part == branches + 1
    learnt = (part > 0) & ((inside >= QUESTION - 1) | last)
    weights = torch.rand(whole, generator=random) * 2 * learnt
    labels = words.roll(-1)
    weights[labels >= WORDS] = 0
    positions = torch.where((part > 0) & ~last, prefix + inside, inside)
    places = (words == IM_PATCH).nonzero()[:, 0]
    widest = max((here.shape[1] for here in windows), default=4)
    flat = np.concatenate(windows) if windows else np.full((1, widest), -1)
    return Batch(
        input_ids=words[None],
        labels=labels[None],
        loss_weights=weights[None],
        position_ids=positions[None],
        document_ids=(1 + last).int()[None],
        branch_ids=torch.where(last, 0, part).int()[None],
        image_ids=image_ids(words, WORDS, attention)[None],
        images=torch.randint(
            0, 256, (max(1, crops), 28, 28, 3), generator=random, dtype=torch.uint8
        ),
        image_masks=torch.ones(max(1, crops), SIDE**2),
        windows=torch.from_numpy(flat),
        image_positions=places if len(places) else torch.tensor([-1]),
        learnt_rows=learnt_rows_of(weights[None]),
    )
