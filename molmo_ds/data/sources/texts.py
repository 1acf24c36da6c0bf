"""Tulu 4's conversations, text without pictures, by which a model keeps what it knew.

Layout: as allenai/molmo2 f3cb108, olmo/data/text_datasets.py, reads allenai/molmo2-tulu4-classified. Code, puzzles,
long reasoning, other languages than English, hard-coded answers, empty messages, special tokens, and first messages
above a number of tokens (column first_message_qwen3_tokens) are left out, as there.
"""

import functools

from molmo_ds.data.sources.source import Item, LeftOut, Row, Source, annotation

STYLE = "text_sft"
LONGEST = 4096  # tokens of the first message
LONGEST_BEFORE = 2304  # of the set for pre-training
_LEFT_OUT = {
    "allenai/dino-hardcodes": "hard-coded answer",
    "allenai/hardcoded-olmo": "hard-coded answer",
    "allenai/puzzle_data_160k-ngram-filtered": "puzzle",
    "faezeb/verifiable-reasoning-v3-o4-mini-length-filtered-verified": "long reasoning",
    "allenai/verifiable-reasoning-filtered-o4-mini-filtered": "long reasoning",
}


def tulu(row: Row, split: str, longest: int) -> list[Item]:
    """One conversation; a system message stands before the first question."""
    refuse(row, longest)
    turns = list(row["messages"])
    if not turns:
        raise LeftOut("empty message")
    texts = []
    if turns[0]["role"] == "system":
        system = turns.pop(0)["content"]
        if not turns or turns[0]["role"] != "user":
            raise LeftOut("turns that do not alternate")
        texts.append(f"System: {system}\n{turns.pop(0)['content']}")
    for turn in turns:
        if turn["role"] != ("assistant" if len(texts) % 2 else "user"):
            raise LeftOut("turns that do not alternate")
        texts.append(turn["content"])
    if len(texts) < 2:
        raise LeftOut("question without an answer")
    if len(texts) % 2:
        texts.pop()  # a last question, which nothing answers
    known = {"example_id": row["id"], "source": row["source"]}
    return [Item((), [annotation(STYLE, messages=texts)], known)]


def refuse(row: Row, longest: int) -> None:
    """LeftOut for a conversation that the reference does not train on."""
    if row["empty_messages"]:
        raise LeftOut("empty message")
    if row["has_special_token"]:
        raise LeftOut("special token in a text")
    if row["source"] in _LEFT_OUT:
        raise LeftOut(_LEFT_OUT[row["source"]])
    if row["category"] in ("code", "non-english"):
        raise LeftOut("code" if row["category"] == "code" else "other language than English")
    if row["first_message_qwen3_tokens"] > longest:
        raise LeftOut(f"first message above {longest} tokens")


SOURCES = [
    Source(
        name,
        "ODC-BY-1.0*",
        "allenai/molmo2, olmo/data/text_datasets.py",
        functools.partial(tulu, longest=longest),
        {"train": "train"},
        "allenai/molmo2-tulu4-classified",
        aliases=aliases,
    )
    for name, longest, aliases in (
        ("tulu4", LONGEST, ("tulu",)),
        ("tulu4_max_2304", LONGEST_BEFORE, ()),
    )
]
