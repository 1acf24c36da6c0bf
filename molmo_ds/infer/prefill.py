"""Questions as one packed sequence; those about the same pictures are a message tree, whose prefix is there once.

HeMolmo's are a padded row each: the question stands before the picture, which it sees in its own way.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from molmo_ds.batch import (
    MARKS,
    PER_CROP,
    PER_WINDOW,
    Batch,
    Sample,
    SelectionBatch,
    SelectionSample,
)
from molmo_ds.data.order.packing import row
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.infer.question import Question

SEEN = tuple(name for name in (*PER_CROP, *PER_WINDOW) if name != "image_positions")
# pictures that live -> (the other tensors of SEEN that they came with, the hash of all)
_DIGESTS = WeakIdKeyDictionary()


def pack(packed: Sequence[Sequence[Question]]) -> tuple[Batch, Tensor]:
    """Trees -> (one sequence of them without padding, int64 [A] the last token of every question in order).

    Trees of HeMolmo, of one question each, are padded rows, and tokens are counted through all of them.
    """
    if isinstance(packed[0][0].prompt, SelectionSample):
        return _rows([question for [question] in packed])
    samples = [tree(questions) for questions in packed]
    ends = []
    start = 0
    for questions, sample in zip(packed, samples):
        prefix = questions[0].prefix
        end = start + prefix
        for question in questions:
            end += question.length - prefix
            ends.append(end - 1)
        start += len(sample.input_ids)
    return row(samples, start), torch.tensor(ends)


def tree(questions: Sequence[Question]) -> Sample:
    """One sample with a branch for each question about the same pictures, tokens that were begun at their ends.

    By numpy, for which a few tokens are cheap.
    """
    first = questions[0].prompt
    prefix = questions[0].prefix
    # a prompt may have no branch at all
    branched = bool(first.branch_ids[-1] > 0) or len(questions) > 1
    ids = [first.input_ids.numpy()[:prefix]]
    positions = [first.position_ids.numpy()[:prefix]]
    branches = [first.branch_ids.numpy()[:prefix]]
    marks = {name: [getattr(first, name).numpy()[:prefix]] for name in MARKS}
    for number, question in enumerate(questions, 1):
        begun = np.array(question.begun, np.int64)
        length = question.length
        ids += [question.prompt.input_ids.numpy()[prefix:], begun]
        positions.append(np.arange(prefix, length))
        branches.append(np.full(length - prefix, number * branched, np.int32))
        for name, parts in marks.items():
            own = getattr(question.prompt, name).numpy()[prefix:]
            parts += [own, np.zeros(len(begun), own.dtype)]
    tokens = _joined(ids)
    return Sample(
        input_ids=tokens,
        labels=torch.zeros_like(tokens),
        loss_weights=torch.zeros(len(tokens)),
        position_ids=_joined(positions),
        branch_ids=_joined(branches),
        **{name: _joined(parts) for name, parts in marks.items()},
        **{name: getattr(first, name) for name in (*PER_CROP, *PER_WINDOW)},
    )


def _joined(parts: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts))


def key(question: Question) -> Hashable:
    """Equal for questions that can share a prefix: those whose pictures, the same, lie in it."""
    prompt = question.prompt
    prefix = question.prefix
    if (
        isinstance(prompt, SelectionSample)
        or not len(prompt.images)
        or prompt.image_positions.numpy().max() >= prefix
        or prefix == len(prompt.input_ids)
    ):
        return question.name
    tokens = [getattr(prompt, name).numpy()[:prefix] for name in ("input_ids", *MARKS)]
    places = prompt.image_positions.numpy()
    return (_seen(prompt), *(numbers.tobytes() for numbers in (*tokens, places)))


def _rows(questions: list[Question]) -> tuple[SelectionBatch, Tensor]:
    batch = collate_selected([_continued(question) for question in questions])
    lengths = torch.tensor([question.length for question in questions])
    return batch, torch.arange(len(questions)) * batch.input_ids.shape[1] + lengths - 1


def _continued(question: Question) -> SelectionSample:
    """The prompt with the tokens that were begun."""
    prompt = question.prompt
    count = len(question.begun)
    if not count:
        return prompt
    after = torch.arange(prompt.reach, prompt.reach + count)
    added = {
        "input_ids": torch.tensor(question.begun, dtype=torch.int64),
        "labels": torch.zeros(count, dtype=torch.int64),
        "loss_weights": torch.zeros(count),
        "position_ids": after,
        "branch_ids": prompt.branch_ids[-1:].expand(count),
    }
    added |= {name: getattr(prompt, name).new_zeros(count) for name in MARKS}
    parts = {name: torch.cat((getattr(prompt, name), tail)) for name, tail in added.items()}
    return replace(prompt, **parts)


def _seen(prompt: Sample) -> bytes:
    """A hash of what is seen, megabytes; made once for all prompts that SampleBuilder made of the same `Seen`."""
    parts = [getattr(prompt, name) for name in SEEN]
    known = _DIGESTS.get(prompt.images)
    if known is None or any(one is not other for one, other in zip(known[0], parts[1:])):
        made = hashlib.blake2b()
        for tensor in parts:
            made.update(str(tuple(tensor.shape)).encode())
            made.update(tensor.contiguous().numpy())
        known = _DIGESTS[prompt.images] = (parts[1:], made.digest())
    return known[1]
