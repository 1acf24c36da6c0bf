"""Answers without a cache, and questions: the whole network runs over all tokens for every new one."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Sample, windows_of
from molmo_ds.data.order.packing import collate
from molmo_ds.infer.options import GREEDY, Options
from molmo_ds.infer.question import Question
from molmo_ds.infer.sampling import draw
from molmo_ds.model.molmo import Molmo
from molmo_ds.testing.text_sample import text_sample

POOLED = 4  # patches of a crop


def prompt(
    config: MolmoConfig, crops: int, words: int, seed: int, picture: int | None = None
) -> Sample:
    """BOS and `crops` crops as the prefix, then a branch of `words` words; equal `picture`s are equal."""
    drawn = np.random.RandomState(seed)
    seen = np.random.RandomState(1000 + (seed if picture is None else picture))
    vision = config.vision
    patches = (vision.image_size // vision.patch_size) ** 2
    prefix = 1 + POOLED * crops
    ids = np.concatenate(
        ([1], np.full(POOLED * crops, config.text.vocab_size + 2), drawn.randint(6, 90, words))
    )
    length = len(ids)
    return replace(
        text_sample(torch.from_numpy(ids.astype(np.int64))),
        branch_ids=(torch.arange(length) >= prefix).int(),
        image_ids=(torch.from_numpy(ids) == config.text.vocab_size + 2).int(),
        images=torch.from_numpy(seen.randint(0, 256, (crops, 28, 28, 3), dtype=np.uint8)),
        image_masks=torch.from_numpy(seen.randint(0, 3, (crops, patches)).astype(np.float32) / 2),
        windows=windows_of(crops, vision.image_size // vision.patch_size, 2),
        image_positions=1 + torch.arange(POOLED * crops),
    )


def questions(
    config: MolmoConfig, count: int, options: Options = GREEDY, same: int = 1
) -> list[Question]:
    """`count` questions of unlike lengths with 0 to 2 crops; `same` neighbours are about one picture."""
    out = []
    for i in range(count):
        crops = i // same % 3 if same == 1 else 1 + i // same % 2
        sample = prompt(config, crops, 3 + i * 5 % 7, seed=i, picture=i // same)
        out.append(Question(name=f"question {i}", prompt=sample, options=options))
    return out


@torch.no_grad()
def run(model: Molmo, question: Question) -> list[tuple[int, float]]:
    """(token, log-probability) up to max_new_tokens or the last position, whatever the end token may be."""
    sample = question.prompt
    known = model.config.text.max_position_embeddings
    ids = list(question.begun)
    out = []
    while len(ids) < question.options.max_new_tokens and len(sample.input_ids) + len(ids) < known:
        logits = model.logits(collate([[_longer(sample, ids)]], len(sample.input_ids) + len(ids)))[
            0, -1
        ]
        ids.append(_next(logits, question, len(ids)))
        out.append((ids[-1], float(logits.log_softmax(-1)[ids[-1]])))
    return out


def cut(
    made: list[tuple[int, float]], question: Question, eos: int
) -> tuple[list[int], float, str]:
    """What `run` made until `eos`: (tokens without the end, sum of log-probabilities, why it ended)."""
    ids = [token for token, _ in made]
    length = ids.index(eos) + 1 if eos in ids else len(ids)
    total = sum(log_probability for _, log_probability in made[:length])
    if eos in ids:
        return ids[: length - 1], total, "stop"
    return ids, total, "length" if length == question.options.max_new_tokens else "context"


def _next(logits: Tensor, question: Question, place: int) -> int:
    """Inverse of the distribution function at the question's draw, word by word."""
    options = question.options
    if not options.temperature:
        return int(logits.argmax())
    shares = (logits / options.temperature).softmax(-1)
    kept = sorted(range(len(shares)), key=lambda word: -float(shares[word]))[
        : options.top_k or None
    ]
    kept.sort()
    chance = draw(options.seed, question.draws or question.name, place) * float(shares[kept].sum())
    for word in kept:
        chance -= float(shares[word])
        if chance < 0:
            return word
    return kept[-1]


def _longer(sample: Sample, ids: list[int]) -> Sample:
    tokens = torch.cat((sample.input_ids, torch.tensor(ids, dtype=torch.int64)))
    more = len(ids)
    return replace(
        text_sample(tokens),
        branch_ids=torch.cat((sample.branch_ids, sample.branch_ids[-1:].expand(more))),
        image_ids=torch.cat((sample.image_ids, torch.zeros(more, dtype=torch.int32))),
        images=sample.images,
        image_masks=sample.image_masks,
        windows=sample.windows,
        image_positions=sample.image_positions,
    )
