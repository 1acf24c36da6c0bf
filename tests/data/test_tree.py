"""Trees that the limit cuts: weights and lengths as allenai/molmo2 f3cb108 makes them, run with this tokenizer."""

import pytest
from numpy.random import RandomState

from molmo_ds.config import PromptConfig, SourceConfig
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sample.tree import Tree, learn
from molmo_ds.data.sample.turns import Conversation

PICTURE = [200002, 200004, 200001]
TURNS = (["aa", "bbbb"], ["a", "b"], ["aaa", "bb"])


class Letters:
    """A token for each letter."""

    bos = eos = 1

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def special(self, name: str) -> int:
        return {"<|im_start|>": 100001, "<|im_end|>": 1}[name]


def tree(limit: int, chat: bool = True) -> Tree:
    share = len(TURNS) ** -0.5
    several = [
        Conversation(list(turns), share, chat=chat, root_length=chat, root_branches=True)
        for turns in TURNS
    ]
    return learn(Letters(), several, [PICTURE], limit)


def learnt(made: Tree) -> list[list[float]]:
    branches = made.branches()
    weights = [[] for _ in made.branch_lengths]
    for branch, weight in zip(branches, made.loss_weights, strict=True):
        if weight:
            weights[branch].append(round(weight, 6))
    return weights[1:]


@pytest.mark.parametrize(
    ("limit", "length", "wanted"),
    [
        (80, 74, [[0.57735] * 5, [1.154701] * 2, [0.816497] * 3]),
        (70, 50, [[0.707107] * 5, [1.414214] * 2]),
        (50, 50, [[0.707107] * 5, [1.414214] * 2]),
        (40, 29, [[1.0] * 5]),
    ],
)
def test_branches_without_room_do_not_count(limit: int, length: int, wanted: list[list[float]]):
    made = tree(limit)
    assert (len(made), learnt(made)) == (length, wanted)
    assert made.cut == 74 - length


def test_molmo_cuts_without_looking():
    """There the collator cuts, after the weights are made of all annotations."""
    made = tree(12, chat=False)
    assert (len(made), learnt(made)) == (12, [[0.57735] * 5, [0.57735] * 2, []])


@pytest.mark.parametrize(("roots", "token_weight"), [(True, None), (False, None), (True, 0.2)])
def test_weights_that_were_not_divided_stay(roots: bool, token_weight: float | None):
    config = PromptConfig(message_format="chat", root_subsegments=roots, system_prompt="none")
    formatter = PromptFormatter(config, SourceConfig(token_weight=token_weight))
    annotations = [{"style": "vqa2", "question": a, "answer": b} for a, b in TURNS]
    made = formatter.conversations(annotations, RandomState(0))
    assert [one.root_branches for one in made] == [roots and token_weight is None] * 3
