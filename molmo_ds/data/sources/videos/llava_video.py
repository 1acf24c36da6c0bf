"""The academic part of LLaVA-Video-178K: questions about videos of ActivityNet, Perception Test and NExT-QA.

Source: allenai/molmo2 at f3cb108, olmo/data/academic_video_datasets.py (LLaVAVideoAcademic), which names the files of
each length and source, as the set's card does wrongly for ActivityNet. Entries of one id and video are one record,
apart by kind of question. A choice's options stand in its question, and its answer is the letter with the option, as
published.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from molmo_ds.data.sources.source import Item, Row, Source, annotation
from molmo_ds.data.sources.videos.video_answers import (
    CHOICE,
    LAYOUT,
    LICENCE,
    SHORT,
    TRAIN,
    learnt,
    read_records,
)

PARTS = {  # kind of question -> folders, in the reference's order
    "mc": (
        *("0_30_s_perceptiontest", "0_30_s_nextqa", "30_60_s_perceptiontest"),
        *("30_60_s_nextqa", "1_2_m_nextqa", "2_3_m_nextqa"),
    ),
    "oe": (
        *("0_30_s_activitynetqa", "0_30_s_nextqa", "30_60_s_activitynetqa", "30_60_s_nextqa"),
        *("1_2_m_activitynetqa", "1_2_m_nextqa", "2_3_m_activitynetqa", "2_3_m_nextqa"),
    ),
}
STYLES = {"mc": CHOICE, "oe": SHORT}
MARK = "<image>\n"  # before the first question of an entry


def read(folder: Path, split: str, kind: str) -> Iterator[Row]:
    """FOLDER/*KIND*.json of every part, of which there is one; ValueError where there are several."""
    for part in PARTS[kind]:
        names = sorted(path.name for path in (folder / part).glob(f"*{kind}*.json"))
        if not names:
            raise FileNotFoundError(None, None, f"{folder / part}/*{kind}*.json")
        if len(names) > 1:
            raise ValueError(
                f"{folder / part} has {', '.join(names)}, but should have one such file; leave the published one there."
            )
        for row in read_records(folder, f"{part}/{names[0]}"):
            entry = (row["id"], row["data_source"], row["video"])
            yield {**row, "part": part, "shown": "_".join(map(str, entry))}


def adapt(row: Row, split: str, kind: str) -> list[Item]:
    """Questions and answers as they follow each other in a conversation."""
    turns = [turn["value"] for turn in row["conversations"]]
    said = [
        annotation(STYLES[kind], question=turns[i].removeprefix(MARK), answer=turns[i + 1].strip())
        for i in range(0, len(turns), 2)
    ]
    known = {"example_id": row["shown"], "part": row["part"]}
    return learnt(f"{row['data_source']}/{row['video']}", said, known)


SOURCES = [
    Source(
        f"llava_video_{kind}_academic",
        LICENCE,
        LAYOUT,
        partial(adapt, kind=kind),
        TRAIN,
        group="shown",
        read=partial(read, kind=kind),
        by_hand="download the folders *_activitynetqa, *_nextqa and *_perceptiontest of the hub's"
        " lmms-lab/LLaVA-Video-178K into DIR and unpack their tars each in its folder",
    )
    for kind in PARTS
]
