"""Conversations and image tokens to one tree of tokens: a shared prefix, and branches that do not see each other."""

from dataclasses import dataclass

import numpy as np

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.conversation import PLACE
from molmo_ds.data.sample.layout import Layout
from molmo_ds.data.sample.turns import Conversation
from molmo_ds.data.tokens import Words


@dataclass(frozen=True)
class Tree:
    """The tokens of a sample in order: BOS and pictures, then every branch."""

    input_ids: list[int]
    labels: list[int]  # the token that follows inside the same branch
    loss_weights: list[float]
    branch_lengths: list[int]  # tokens of the prefix and of every branch
    starts: list[int]  # where the tokens of each picture begin
    cut: int = 0  # tokens that the limit cost

    def __len__(self) -> int:
        return len(self.input_ids)

    def positions(self) -> np.ndarray:
        """Position ids, int64 [t]: every branch goes on where the prefix ends."""
        prefix, *branches = self.branch_lengths
        return np.concatenate(
            [np.arange(prefix), *(np.arange(prefix, prefix + length) for length in branches)]
        )

    def branches(self) -> np.ndarray:
        """Branch ids, int32 [t]: 0 for the prefix, 1, 2, ... for the branches."""
        return np.repeat(np.arange(len(self.branch_lengths), dtype=np.int32), self.branch_lengths)


@dataclass(frozen=True)
class _Branch:
    tokens: list[int]
    weights: list[float]  # of predicting each token
    places: list[int]  # where pictures begin, if the text says where


def learn(
    tokenizer: Words, conversations: list[Conversation], layouts: list[Layout], limit: int
) -> Tree:
    """A tree to learn from, of at most `limit` tokens; what is longer loses its end.

    A branch's last token is a label only, since nothing would see it. Its first token is predicted at the prefix's end,
    which is one place for all branches: there the first branch's is learnt (a user's word, so of weight 0, unless the
    prompt is empty). Raises BadSample where pictures or cutting leave nothing to learn.
    """
    check_places(conversations, len(layouts))
    branches = [_branch(tokenizer, conversation, layouts) for conversation in conversations]
    placed = any(branch.places for branch in branches)
    ids, starts = prefix(tokenizer, () if placed else layouts)
    labels = [*ids[1:], branches[0].tokens[0]]
    weights = [0.0] * len(ids)
    lengths = [len(ids)]
    weights[-1] = branches[0].weights[0]
    for branch in branches:
        starts += [len(ids) + place for place in branch.places]
        ids += branch.tokens[:-1]
        labels += branch.tokens[1:]
        weights += branch.weights[1:]
        lengths.append(len(branch.tokens) - 1)
    _check_room(starts, layouts, limit)
    cut = max(0, len(ids) - limit)
    if cut:
        ends = np.minimum(np.cumsum(lengths), limit)
        lengths = np.diff(ends, prepend=0).tolist()
        if not any(weights[:limit]):
            raise BadSample(
                f"Cut at sequence_length {limit}, nothing is left of the answers; raise it."
            )
    return Tree(ids[:limit], labels[:limit], weights[:limit], lengths, starts, cut)


def check_places(conversations: list[Conversation], pictures: int) -> None:
    """BadSample where texts place pictures that are not there, only some of them, or in one of several branches."""
    counts = [sum(text.count(PLACE) for text in one.messages[::2]) for one in conversations]
    if any(counts) and not pictures:
        raise BadSample(
            f"The text has a place for a picture ({PLACE}), but the sample has no picture."
        )
    if any(counts) and len(counts) > 1:
        raise BadSample(
            f"{PLACE} may stand in a sample's text only if it has one annotation, not {len(counts)}."
        )
    if any(count > pictures for count in counts):
        raise BadSample(
            f"The text names more pictures ({PLACE}) than the {pictures} of the sample."
        )
    if any(0 < count < pictures for count in counts):
        raise BadSample(
            f"The text places {counts[0]} of {pictures} pictures; place all of them or none."
        )


def ask(tokenizer: Words, messages: list[str], layouts: list[Layout], limit: int) -> Tree:
    """A prompt, the user's turn last: nothing is learnt and nothing cut; ValueError where it is longer than `limit`."""
    conversation = Conversation(messages, 0.0)
    if layouts:  # without one the words of a user stay words
        check_places([conversation], len(layouts))
    branch = _branch(tokenizer, conversation, layouts)
    ids, starts = prefix(tokenizer, () if branch.places else layouts)
    starts += [len(ids) + place for place in branch.places]
    _check_room(starts, layouts, limit)
    lengths = [len(ids), len(branch.tokens)]
    ids += branch.tokens
    if len(ids) > limit:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, more than the model's {limit}; make it shorter."
        )
    return Tree(ids, [0] * len(ids), [0.0] * len(ids), lengths, starts)


def prefix(tokenizer: Words, layouts: list[Layout] | tuple[()]) -> tuple[list[int], list[int]]:
    """(ids of the beginning and of pictures, where the tokens of each picture begin)."""
    ids = [tokenizer.bos]
    starts = []
    for layout in layouts:
        starts.append(len(ids))
        ids += _picture(tokenizer, layout)
    return ids, starts


def _branch(tokenizer: Words, conversation: Conversation, layouts: list[Layout]) -> _Branch:
    tokens = []
    weights = []
    places = []
    for i, message in enumerate(conversation.messages):
        if i % 2:
            answer = [*tokenizer.encode(message), tokenizer.eos]
            tokens += answer
            weights += [conversation.weight] * len(answer)
            continue
        before, *rest = message.split(PLACE) if layouts else [message]
        tokens += tokenizer.encode(before)
        for part in rest:
            picture = _picture(tokenizer, layouts[len(places)])
            places.append(len(tokens))
            tokens += picture + tokenizer.encode(part)
        weights += [0.0] * (len(tokens) - len(weights))
    return _Branch(tokens, weights, places)


def _picture(tokenizer: Words, layout: Layout) -> list[int]:
    return (layout.tokens + tokenizer.vocab_size).tolist()


def _check_room(starts: list[int], layouts: list[Layout], limit: int) -> None:
    end = max((start + len(layout.tokens) for start, layout in zip(starts, layouts)), default=1)
    if end >= limit:
        raise BadSample(
            f"The pictures end at token {end} and leave no room for text within {limit}; raise data.sequence_length,"
            " or lower images.max_crops or num_frames."
        )
