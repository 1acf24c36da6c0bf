"""Conversations and image tokens to one tree of tokens: a shared prefix, and branches that do not see each other."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from molmo_ds.data.decode import BadSample
from molmo_ds.data.sample.conversation import PLACE
from molmo_ds.data.sample.turns import Conversation, framed
from molmo_ds.data.tokens import Words

Pictures = Sequence[list[int]]  # ids of the tokens of each picture, or of a whole video


@dataclass(frozen=True)
class Tree:
    """The tokens of a sample in order: BOS and pictures, then every branch."""

    input_ids: list[int]
    labels: list[int]  # the token that follows inside the same branch
    loss_weights: list[float]
    branch_lengths: list[int]  # tokens of the prefix and of every branch
    starts: list[int]  # where the tokens of each picture begin
    cut: int = 0  # tokens that the limit cost
    # position of each branch's first token; None = where the prefix ends
    branches_begin: int | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def positions(self) -> np.ndarray:
        """Position ids, int64 [t]: every branch continues where the prefix ends."""
        prefix, *branches = self.branch_lengths
        begin = prefix if self.branches_begin is None else self.branches_begin
        places = [np.arange(begin, begin + length) for length in branches]
        return np.concatenate([np.arange(prefix), *places])

    def branches(self) -> np.ndarray:
        """Branch ids, int32 [t]: 0 for the prefix, 1, 2, ... for the branches."""
        return np.repeat(np.arange(len(self.branch_lengths), dtype=np.int32), self.branch_lengths)


@dataclass(frozen=True)
class _Branch:
    tokens: list[int]
    weights: list[float]  # of predicting each token
    places: list[int]  # where pictures begin, if the text says where


def learn(
    tokenizer: Words, conversations: list[Conversation], pictures: Pictures, limit: int
) -> Tree:
    """A tree to learn from, of at most `limit` tokens; what is longer loses its end.

    A chat loses branches whose first answer does not begin within the limit, and the others weigh more, as in Molmo2.
    A branch's last token is a label only, since nothing would see it. Its first token is predicted at the prefix's end,
    which is one place for all branches: there the first branch's is learnt (a user's word, so of weight 0, unless the
    prompt is empty). Raises BadSample where pictures or cutting leave nothing to learn.
    """
    check_places(conversations, len(pictures))
    several = len(conversations) > 1
    branches = [_branch(tokenizer, one, pictures, several) for one in conversations]
    placed = any(branch.places for branch in branches)
    ids, starts = prefix(tokenizer, () if placed else pictures)
    left_out = 0
    if several and conversations[0].chat:
        kept = _with_room(branches, len(ids), limit)
        left_out = sum(len(branch.tokens) - 1 for branch in branches[len(kept) :])
        if len(kept) < len(branches) and conversations[0].root_branches:
            kept = [_heavier(branch, math.sqrt(len(branches) / len(kept))) for branch in kept]
        branches = kept
    labels = [*ids[1:], branches[0].tokens[0]]
    weights = [0.0] * len(ids)
    weights[-1] = branches[0].weights[0]
    lengths = [len(ids)]
    for branch in branches:
        starts += [len(ids) + place for place in branch.places]
        ids += branch.tokens[:-1]
        labels += branch.tokens[1:]
        weights += branch.weights[1:]
        lengths.append(len(branch.tokens) - 1)
    _check_room(starts, pictures, limit)
    cut = max(0, len(ids) - limit)
    if cut:
        ends = np.minimum(np.cumsum(lengths), limit)
        lengths = np.diff(ends, prepend=0).tolist()
        if not any(weights[:limit]):
            raise BadSample(
                f"Cut at sequence_length {limit}, nothing is left of the answers; raise it."
            )
    # Molmo2's branches begin at 0 where there is no picture (olmo/preprocessing/text_preprocessor.py)
    begin = 0 if several and conversations[0].chat and not pictures else None
    return Tree(
        ids[:limit], labels[:limit], weights[:limit], lengths, starts, cut + left_out, begin
    )


def _with_room(branches: list[_Branch], begin: int, limit: int) -> list[_Branch]:
    """The branches before the first whose first learnt token does not lie within the limit; the first one in any case.

    Source: allenai/molmo2 f3cb108, olmo/preprocessing/text_preprocessor.py (tokenize_message_list).
    """
    for number, branch in enumerate(branches):
        first = next((i for i, weight in enumerate(branch.weights) if weight), 0)
        if number and begin + first >= limit:
            return branches[:number]
        begin += len(branch.tokens) - 1
    return branches


def _heavier(branch: _Branch, factor: float) -> _Branch:
    return _Branch(branch.tokens, [weight * factor for weight in branch.weights], branch.places)


def check_places(conversations: list[Conversation], pictures: int) -> None:
    """Raise BadSample if texts place pictures that are missing, only some of them, or in one of several branches."""
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


def ask(
    tokenizer: Words, messages: list[str], pictures: Pictures, limit: int, chat: bool = False
) -> Tree:
    """A prompt, the user's turn last: nothing is learnt and nothing cut; ValueError where it is longer than `limit`."""
    conversation = Conversation(messages, 0.0, chat=chat)
    if pictures:  # without one the words of a user stay words
        check_places([conversation], len(pictures))
    branch = _branch(tokenizer, conversation, pictures)
    ids, starts = prefix(tokenizer, () if branch.places else pictures)
    starts += [len(ids) + place for place in branch.places]
    _check_room(starts, pictures, limit)
    lengths = [len(ids), len(branch.tokens)]
    ids += branch.tokens
    if len(ids) > limit:
        raise ValueError(
            f"The prompt has {len(ids)} tokens, more than the model's {limit}; make it shorter."
        )
    return Tree(ids, [0] * len(ids), [0.0] * len(ids), lengths, starts)


def prefix(tokenizer: Words, pictures: Pictures) -> tuple[list[int], list[int]]:
    """(ids of the beginning and of pictures, where the tokens of each picture begin)."""
    ids = [tokenizer.bos]
    starts = []
    for picture in pictures:
        starts.append(len(ids))
        ids += picture
    return ids, starts


def _branch(
    tokenizer: Words, conversation: Conversation, pictures: Pictures, several: bool = False
) -> _Branch:
    """One branch; of `several`, the last end is not counted as one of the tokens that are learnt."""
    tokens: list[int] = []
    learnt: list[bool] = []
    places: list[int] = []
    last = len(conversation.messages) - 1
    for i, message in enumerate(conversation.messages):
        if i % 2:
            tokens += [*tokenizer.encode(message), tokenizer.eos]
        else:
            _add_question(tokenizer, conversation, i, pictures, tokens, places)
        wanted = i % 2 == 1 and (i == last or not conversation.last_answer_only)
        learnt += [wanted] * (len(tokens) - len(learnt))
    weight = conversation.weight
    if conversation.root_length and any(learnt):
        weight *= 2 / math.sqrt(max(1, sum(learnt) - several))
    return _Branch(tokens, [weight if wanted else 0.0 for wanted in learnt], places)


def _add_question(
    tokenizer: Words,
    conversation: Conversation,
    i: int,
    pictures: Pictures,
    tokens: list[int],
    places: list[int],
) -> None:
    """Append turn i, a user's, to the tokens, and where its pictures begin to the places."""
    text = conversation.messages[i]
    for part in framed(i, text) if conversation.chat else [text]:
        if not isinstance(part, str):
            tokens.append(tokenizer.special(part.name))
            continue
        before, *rest = part.split(PLACE) if pictures else [part]
        tokens += tokenizer.encode(before)
        for after in rest:
            picture = pictures[len(places)]
            places.append(len(tokens))
            tokens += picture
            tokens += tokenizer.encode(after)


def _check_room(starts: list[int], pictures: Pictures, limit: int) -> None:
    end = max((start + len(picture) for start, picture in zip(starts, pictures)), default=1)
    if end >= limit:
        raise BadSample(
            f"The pictures end at token {end} and leave no room for text within {limit}; raise data.sequence_length,"
            " or lower images.max_crops or num_frames."
        )
