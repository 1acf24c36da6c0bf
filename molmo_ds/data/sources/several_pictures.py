"""Questions about several pictures at once: Mantis, MuirBench, MMIU, BLINK, and PointBench's places in one picture.

Layouts: the loaders of allenai/molmo2 at f3cb108, olmo/data/academic_multi_image_datasets.py and
academic_image_datasets.py. Mantis' rows are Ai2's, its pictures those of TIGER-Lab/Mantis-Instruct: the user unpacks
them below the data set's folder as mantis-instruct/NAME/SPLIT_images. PointBench's masks are PNGs: what is lighter than
the middle is inside.
"""

import io
import re
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image

from molmo_ds.data.sources.masks import runs_of
from molmo_ds.data.sources.source import (
    Item,
    LeftOut,
    Picture,
    Row,
    Source,
    annotation,
    apart,
    picture,
    placed,
    read_json,
    twins,
)
from molmo_ds.data.sources.videos.video_choices import read_table

LAYOUT = "allenai/molmo2, olmo/data/academic_multi_image_datasets.py"
LICENCE = "not read*"
STYLE = "mantis_instruct_mc"  # options and pictures, several of these
BLINK = (
    "Art_Style Counting Forensic_Detection Functional_Correspondence IQ_Test Jigsaw Multi-view_Reasoning"
    " Object_Localization Relative_Depth Relative_Reflectance Semantic_Correspondence Spatial_Relation"
    " Visual_Correspondence Visual_Similarity"
)
_OPTION = re.compile(r"^([A-Z]):\s?(.+)$", re.MULTILINE)
MANTIS = ("nlvr2", "llava_665k_multi", "spot-the-diff", "nextqa", "star")
LIGHT = 127  # above it a mask's pixel is inside


def muir_bench(row: Row, split: str) -> list[Item]:
    """`<image>` in a text stands for the next picture, which is named by its number."""
    numbers = count(1)
    question, *options = [
        re.sub("<image>", lambda _: f"Image {next(numbers)}", text)
        for text in (row["question"], *row["options"])
    ]
    index = ascii_uppercase.index(row["answer"])
    asked = annotation(STYLE, question=question, options=options, answer_index=index)
    known = {"example_id": row["idx"], "task": row["task"]}
    known |= {"image_relation": row["image_relation"], "image_type": row["image_type"]}
    known["counterpart_id"] = row["counterpart_idx"]
    shown = tuple(one for value in row["image_list"] for one in picture(value))
    return [Item(shown, [asked], known)]


def mantis(row: Row, split: str, several: bool) -> list[Item]:
    """Questions with options about the pictures of a row.

    The options keep their order but for the right one, whose place depends on the question alone; there they are
    shuffled at every visit.

    Args:
        several: leave out rows of one picture.
    """
    if several and len(row["images"]) < 2:
        raise LeftOut("less than 2 pictures")
    asked = []
    for question, options, right in zip(
        row["mc_question"], row["choices"], row["correct_choice_idx"], strict=True
    ):
        wrong = list(options)
        answer = wrong.pop(right)
        ordered, place = placed(question, answer, wrong)
        asked.append(annotation(STYLE, question=question, options=ordered, answer_index=place))
    known = {"example_id": row["example_id"], "subset": row["subset"]}
    return [Item(tuple(Picture(path=path) for path in row["images"]), asked, known)]


def read_mmiu(folder: Path, split: str) -> Iterator[Row]:
    """The hub's table, whose rows have no ids."""
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.parquet"))
    if not names:
        raise FileNotFoundError(None, None, f"{folder}/*.parquet")
    rows = (row for name in names for row in read_table(folder, str(name)))
    for number, row in enumerate(rows):
        yield {**row, "number": number}


def mmiu(row: Row, split: str) -> list[Item]:
    """One to 62 pictures; some right answers are letters that no option has, so the letter is kept as it is."""
    options = [text for _, text in _OPTION.findall(row["options"])]
    names = [name.removeprefix("./") for name in row["input_image_path"]]
    asked = annotation(STYLE, question=row["question"], options=options, answer=row["output"])
    known = {"example_id": str(row["number"]), "task": row["task"], "num_images": len(names)}
    known |= {"relationship": names[0].split("/")[0]}
    shown = tuple(one for name in names for one in picture(name))
    return [Item(shown, [asked], known)]


def blink(row: Row, split: str) -> list[Item]:
    """Up to four pictures; the whole question is a text of the set's own."""
    shown = tuple(one for number in range(1, 5) for one in picture(row.get(f"image_{number}")))
    letter = row["answer"].strip("()")
    public = letter in set(ascii_uppercase)
    style = STYLE if len(shown) > 1 else "eval_multiple_choice"
    asked = annotation(style, question=row["prompt"], answer=letter if public else None)
    known = {"example_id": row["idx"], "sub_task": row["sub_task"]}
    known["options"] = list(row["choices"])
    return [Item(shown, [asked], known)]


def read_point_bench(folder: Path, split: str) -> Iterator[Row]:
    """data.json with selected_images/ and selected_masks/; without a mask there is nothing to score."""
    rows = [row for row in read_json(folder, "data.json") if "mask_filename" in row]
    for row in twins(rows, "category", "image_filename"):
        path = folder / "selected_masks" / row["category"] / row["mask_filename"]
        yield {**row, "mask": path.read_bytes()}


def point_bench(row: Row, split: str) -> list[Item]:
    """A place that a person asks for in words of their own; every point must lie in one mask."""
    mask = np.asarray(Image.open(io.BytesIO(row["mask"]))) > LIGHT
    mask = mask.any(axis=2) if mask.ndim == 3 else mask
    asked = annotation("pointing", question=row["user_input"], masks=[runs_of(mask)])
    name = row["image_filename"]
    known = {"example_id": apart(f"{row['category']}/{name}", row), "category": row["category"]}
    return [Item(picture(f"selected_images/{row['category']}/{name}"), [asked], known)]


SOURCES = [
    *(
        Source(
            f"mantis_instruct_{name}" + "_multi_only" * several,
            LICENCE,
            LAYOUT,
            partial(mantis, several=several),
            # validation: NLVR2 alone has one
            {"train": "train"} | ({"validation": "validation"} if name == "nlvr2" else {}),
            f"allenai/molmo2-mantis-instruct-{name}",
            by_hand="the set's parquet files of the hub go into DIR/NAME, its pictures of TIGER-Lab/Mantis-Instruct"
            " unpacked as DIR/NAME/mantis-instruct/PART/SPLIT_images",
        )
        for name in MANTIS
        for several in (False, True)
    ),
    Source("muir_bench", LICENCE, LAYOUT, muir_bench, {"test": "test"}, "MUIRBENCH/MUIRBENCH"),
    Source(
        "mmiu",
        LICENCE,
        LAYOUT,
        mmiu,
        {"test": "test"},
        read=read_mmiu,
        by_hand="download the hub's FanqingM/MMIU-Benchmark into DIR and unpack its seven zips there, each into a"
        " folder of its name",
    ),
    Source(
        "blink",
        LICENCE,
        LAYOUT,
        blink,
        {"validation": "val", "test": "test"},
        hub="BLINK-Benchmark/BLINK",
        configs=tuple(BLINK.split()),
    ),
    Source(
        "point_bench",
        LICENCE,
        "allenai/molmo2, olmo/data/academic_image_datasets.py",
        point_bench,
        {"test": "test"},
        read=read_point_bench,
        by_hand="download the hub's PointArena/pointarena-data into DIR and unpack both zips there",
    ),
]
