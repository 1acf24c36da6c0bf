"""PixMo, Ai2's data for Molmo: captions, questions, and documents that programs drew.

Layouts: the dataset card of pixmo-cap on the hub (2024-12), and for the others the columns that the loaders of
allenai/molmo read. Hashes are of the file's bytes. Places are in pixmo_points.py, clocks in clocks.py.
"""

import functools
import re
from typing import Any

from molmo_ds.data.sources.source import (
    Item,
    LeftOut,
    Picture,
    Row,
    Source,
    annotation,
    pairs,
    picture,
)
from molmo_ds.data.wording.no_pointing import may_ask


def item(row: Row, annotations: list[dict[str, Any]]) -> list[Item]:
    """What is said about the picture at a row's address."""
    shown = Picture(url=row["image_url"], sha256=(row.get("image_sha256") or "").lower())
    return [Item((shown,), annotations, {"image_url": row["image_url"]})]


def cap(row: Row, split: str, transcripts: bool = False) -> list[Item]:
    """The written caption; with `transcripts` also what one of the annotators said aloud, drawn at each visit."""
    said: list[dict[str, Any]] = [annotation("long_caption", text=row["caption"])]
    if transcripts:
        said += _transcripts(row)
    return item(row, said)


def transcript(row: Row, split: str) -> list[Item]:
    """What one of the annotators said aloud, drawn at each visit."""
    said = _transcripts(row)
    return item(row, said) if said else []


def _transcripts(row: Row) -> list[dict[str, Any]]:
    said = [annotation("transcript", text=one) for one in row["transcripts"]]
    return [{"one_of": said}] if said else []


def cap_qa(row: Row, split: str, style: str = "synthetic_qa") -> list[Item]:
    """A conversation (user first) that a language model made up from a caption."""
    messages = list(row.get("messages") or _marked(row["question"], row["answer"]))
    asked = annotation(style, messages=messages, no_pointing=may_ask(messages[::2]))
    return item(row, [asked])


def _marked(question: str, answer: str) -> list[str]:
    """The texts of a conversation whose turns but the last are one text, [USER] ... [ASSISTANT] ... [ASSISTANT]."""
    if "[USER]" not in question and "[ASSISTANT]" not in question:
        return [question, answer]
    before, *parts = re.split(r"\[(USER|ASSISTANT)\]", question)
    speakers = parts[::2]
    texts = [text.strip() for text in parts[1::2]]
    if before.strip() or texts[-1] or not all(texts[:-1]):
        raise LeftOut("conversation with an empty turn, or a text outside of its turns")
    if speakers != ["USER", "ASSISTANT"] * (len(speakers) // 2):
        raise LeftOut("conversation whose speakers do not alternate")
    return [*texts[:-1], answer]


def ask_model_anything(row: Row, split: str) -> list[Item]:
    """A person's question with a corrected answer."""
    question = row["question"]
    asked = annotation(
        "user_qa", question=question, answer=row["answer"], no_pointing=may_ask([question])
    )
    return item(row, [asked])


def several(row: Row, split: str) -> list[Item]:
    """A person's questions about two to five pictures, with corrected answers."""
    if not 2 <= len(row["image_urls"]) <= MOST_PICTURES:
        raise LeftOut(f"less than 2 or more than {MOST_PICTURES} pictures")
    asked = [
        annotation("correction_qa", question=q, answer=a, no_pointing=may_ask([q]))
        for q, a in pairs(row["qa_pairs"])
    ]
    shown = tuple(Picture(url=url) for url in row["image_urls"])
    return [Item(shown, asked, {"image_urls": list(row["image_urls"])})]


def docs(row: Row, split: str, kind: str) -> list[Item]:
    """A picture that a program drew, with questions."""
    asked = [
        annotation(f"pixmo_docs_{kind}", question=q, answer=a) for q, a in pairs(row["questions"])
    ]
    return [Item(picture(row["image"]), asked, {"image_id": row["image_id"]})]


MOST_PICTURES = 5  # of a question in fine-tuning
LICENCE = "ODC-BY-1.0"
LOADER = "allenai/molmo, olmo/data/pixmo_datasets.py"
TRAIN = {"train": "train"}
GROUPED = {"url": "image_url", "group": "image_url"}
HASHED = {**GROUPED, "sha256": "image_sha256"}
_SPOKEN = functools.partial(cap, transcripts=True)
_CAP_QA = f"card at 94817b5; {LOADER} (messages), allenai/molmo2 (question with marks, answer)"
_AS_USER_QA = functools.partial(cap_qa, style="user_qa")

SOURCES = [
    Source("pixmo_cap", LICENCE, "dataset card", cap, TRAIN, "allenai/pixmo-cap", url="image_url"),
    Source(
        "pixmo_cap_with_transcripts",
        LICENCE,
        "dataset card",
        _SPOKEN,
        TRAIN,
        hub="allenai/pixmo-cap",
        url="image_url",
        aliases=("pixmo_cap_transcripts",),
        changed="pixmo_cap_with_transcripts shows one transcript, drawn at each visit, as in the reference; until"
        " 2026-11-29 all of them were shown here.",
    ),
    Source(
        "pixmo_transcript",
        LICENCE,
        "dataset card",
        transcript,
        TRAIN,
        hub="allenai/pixmo-cap",
        url="image_url",
    ),
    Source(
        "pixmo_multi_image_qa_multi_only_max5",
        "not read*",
        "allenai/molmo2, olmo/data/pixmo_datasets.py",
        several,
        {"train": "train", "validation": "validation"},
        hub="allenai/Molmo2-MultiImageQA",
        url="image_urls",
    ),
    *(
        Source(name, LICENCE, _CAP_QA, adapt, TRAIN, "allenai/pixmo-cap-qa", **GROUPED)
        for name, adapt in (("pixmo_cap_qa", cap_qa), ("pixmo_cap_qa_as_user_qa", _AS_USER_QA))
    ),
    Source(
        "pixmo_ask_model_anything",
        LICENCE,
        LOADER,
        ask_model_anything,
        TRAIN,
        hub="allenai/pixmo-ask-model-anything",
        **HASHED,
    ),
    *(
        Source(
            f"pixmo_docs_{kind}",
            LICENCE,
            LOADER,
            functools.partial(docs, kind=kind),
            hub="allenai/pixmo-docs",
            configs=(kind,),
        )
        for kind in ("charts", "diagrams", "tables", "other")
    ),
]
