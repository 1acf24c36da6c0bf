"""Questions as one packed sequence; those about the same pictures are a message tree, whose prefix is there once.

HeMolmo's are a padded row each: the question stands before the picture, which it sees in its own way.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from molmo_ds.batch import Batch, Sample, SelectionBatch, SelectionSample
from molmo_ds.data.order.packing import row
from molmo_ds.data.order.selected import collate_selected
from molmo_ds.infer.question import Question

_DIGESTS = WeakIdKeyDictionary()  # of tensors that live


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
    """One sample with a branch for each question about the same pictures, tokens that were begun at their ends."""
    first = questions[0].prompt
    prefix = questions[0].prefix
    ids = [first.input_ids[:prefix]]
    positions = [first.position_ids[:prefix]]
    branches = [first.branch_ids[:prefix]]
    images = [first.image_ids[:prefix]]
    for number, question in enumerate(questions, 1):
        begun = torch.tensor(question.begun, dtype=torch.int64)
        length = question.length
        # a prompt may have no branch at all
        here = int(first.branch_ids[-1] > 0 or len(questions) > 1) * number
        ids += [question.prompt.input_ids[prefix:], begun]
        positions.append(torch.arange(prefix, length))
        branches.append(torch.full((length - prefix,), here, dtype=torch.int32))
        images += [question.prompt.image_ids[prefix:], torch.zeros(len(begun), dtype=torch.int32)]
    tokens = torch.cat(ids)
    return Sample(
        input_ids=tokens,
        labels=torch.zeros_like(tokens),
        loss_weights=torch.zeros(len(tokens)),
        position_ids=torch.cat(positions),
        branch_ids=torch.cat(branches),
        image_ids=torch.cat(images),
        images=first.images,
        image_masks=first.image_masks,
        windows=first.windows,
        image_positions=first.image_positions,
    )


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
    seen = [_digest(tensor) for tensor in (prompt.images, prompt.image_masks, prompt.windows)]
    tokens = (prompt.input_ids[:prefix], prompt.image_ids[:prefix], prompt.image_positions)
    return (*seen, *(tensor.numpy().tobytes() for tensor in tokens))


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
        "image_ids": torch.zeros(count, dtype=torch.int32),
    }
    parts = {name: torch.cat((getattr(prompt, name), tail)) for name, tail in added.items()}
    return replace(prompt, **parts)


def _digest(tensor: Tensor) -> bytes:
    """A hash of megabytes, made once for all prompts that SampleBuilder made of the same `Seen`."""
    found = _DIGESTS.get(tensor)
    if found is None:
        found = _DIGESTS[tensor] = hashlib.blake2b(tensor.contiguous().numpy()).digest()
    return found
