"""Questions about photographs: VQAv2, OK-VQA, A-OKVQA, TextVQA, TallyQA, GQA, CountBenchQA, RealWorldQA.

Layouts: the cards of lmms-lab/textvqa, vikhyatk/CountBenchQA and xai-org/RealworldQA; the official JSON of VQAv2 and
OK-VQA (visualqa.org, "Input Questions Format") and of TallyQA as the loaders of allenai/molmo read them. A-OKVQA: the
names of its official JSON; the hub's copy was not seen, and whether direct_answers is a list or its text there. GQA:
the names of its official JSON, which was not seen.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

from molmo_ds.data.sources.source import Item, LeftOut, Row, Source, annotation, picture, read_json

COCO = "http://images.cocodataset.org/zips/"


def vqa2(row: Row, split: str, style: str = "vqa2", answer: str = "answer") -> list[Item]:
    """Ten people's answers; the test split has none."""
    answers = [a[answer] for a in row["answers"]] if row.get("answers") else None
    known = {"image_id": row["image_id"], "example_id": row["question_id"]}
    if split != "train" and row.get("answer_type"):
        known["answer_type"] = row["answer_type"]  # yes/no, number, other
    return [
        Item(
            picture(row["image"]),
            [annotation(style, question=row["question"], answers=answers)],
            known,
        )
    ]


def read_coco(folder: Path, split: str, version: str) -> Iterator[Row]:
    """Questions joined with their answers, and the COCO file they ask about; `version` begins the files' names."""
    year = {"train": "train2014", "validation": "val2014", "test": "test2015"}[split]
    known = {}
    if split != "test":
        answers = read_json(folder, f"{version}mscoco_{year}_annotations.json")["annotations"]
        known = {a["question_id"]: a for a in answers}
    for row in read_json(folder, f"{version}OpenEnded_mscoco_{year}_questions.json")["questions"]:
        name = f"{year}/COCO_{year}_{row['image_id']:012d}.jpg"
        yield {**known.get(row["question_id"], {}), **row, "image": name}


def a_okvqa(row: Row, split: str, direct: bool) -> list[Item]:
    """Four options (`a_okvqa_mc`), or ten free answers (`a_okvqa_da`; the difficult ones are not evaluated)."""
    known = {"example_id": row["question_id"]}
    if not direct:
        options = list(row["choices"])
        index = row.get("correct_choice_idx")
        asked = annotation(
            "a_okvqa_mc", question=row["question"], options=options, answer_index=index
        )
        return [Item(picture(row["image"]), [asked], known)]
    if split != "train" and row["difficult_direct_answer"]:
        raise LeftOut("question that is too difficult without options")
    answers = row.get("direct_answers") or None
    if isinstance(answers, str):  # the hub holds the list as text
        answers = ast.literal_eval(answers)
    return [
        Item(
            picture(row["image"]),
            [annotation("a_okvqa_da", question=row["question"], answers=answers)],
            known,
        )
    ]


def text_vqa(row: Row, split: str) -> list[Item]:
    """Reading in photographs."""
    answers = list(row["answers"]) if split != "test" else None
    known = {
        "image_id": row["image_id"],
        "example_id": row["question_id"],
        "image_url": row["flickr_300k_url"],
    }
    return [
        Item(
            picture(row["image"]),
            [annotation("text_vqa", question=row["question"], answers=answers)],
            known,
        )
    ]


def tally_qa(row: Row, split: str) -> list[Item]:
    """Counting; `image` is FOLDER/FILE of COCO or Visual Genome."""
    known = {
        "image_id": row["image_id"],
        "example_id": row["question_id"],
        "is_simple": row.get("issimple"),
    }
    asked = annotation("tally_qa", question=row["question"], answer=str(row["answer"]))
    return [Item(picture(row["image"]), [asked], known)]


def gqa(row: Row, split: str) -> list[Item]:
    """Questions made from scene graphs; `types` says of which structure a question is."""
    known = {"image_id": row["imageId"], "example_id": row["question_id"]}
    if split != "train" and row.get("types"):
        known["question_kind"] = row["types"]["structural"]
    return [
        Item(
            picture(row["image"]),
            [annotation("gqa", question=row["question"], answer=row.get("answer"))],
            known,
        )
    ]


def read_gqa(folder: Path, split: str) -> Iterator[Row]:
    """The balanced questions; the file maps the question's id to the question."""
    theirs = {"train": "train", "validation": "val", "testdev": "testdev"}[split]
    for number, row in read_json(folder, f"{theirs}_balanced_questions.json").items():
        yield {**row, "question_id": number, "image": f"images/{row['imageId']}.jpg"}


def count_bench_qa(row: Row, split: str) -> list[Item]:
    """Counting two to ten things; for evaluation, so the count is metadata."""
    asked = annotation("point_count", question=row["question"])
    return [Item(picture(row["image"]), [asked], {"count": row["number"]})]


def real_world_qa(row: Row, split: str) -> list[Item]:
    """Short answers, or letters of options that stand in the question."""
    prompt = row["question"]
    short = "single word or number" in prompt
    style = "eval_short_answer" if short else "eval_multiple_choice"
    asked = annotation(
        style, question=prompt.split("\n")[0] if short else prompt, answer=row["answer"]
    )
    kind = "short_answer" if short else "multiple_choice"
    return [Item(picture(row["image"]), [asked], {"answer": row["answer"], "question_type": kind})]


_OK_VQA = "allenai/molmo loader of HuggingFaceM4/OK-VQA (raw_answer); files named as VQA's"
_A_OKVQA = "the official JSON, as allenai/molmo reads it; the hub's copy was not seen"

SOURCES = [
    Source(
        "coco_2014_vqa_multi",
        "CC BY 4.0*",
        "visualqa.org; allenai/molmo, olmo/hf_datasets/vqa_v2.py",
        vqa2,
        aliases=("vqa2",),
        group="image_id",
        read=functools.partial(read_coco, version="v2_"),
        by_hand="unpack the Balanced Real Images questions and annotations of https://visualqa.org/download.html and"
        f" {COCO}train2014.zip, val2014.zip, test2015.zip into one folder DIR",
    ),
    Source(
        "okvqa",
        "not stated",
        _OK_VQA,
        functools.partial(vqa2, style="okvqa", answer="raw_answer"),
        splits={"train": "train", "validation": "validation"},
        read=functools.partial(read_coco, version=""),
        by_hand="unpack the questions and annotations (v1.1) of https://okvqa.allenai.org/download.html and"
        f" {COCO}train2014.zip, val2014.zip into one folder DIR",
    ),
    *(
        Source(
            name,
            "Apache-2.0*",
            _A_OKVQA,
            functools.partial(a_okvqa, direct=direct),
            hub="HuggingFaceM4/A-OKVQA",
            confirmed=False,
        )
        for name, direct in (("a_okvqa_mc", False), ("a_okvqa_da", True))
    ),
    Source("text_vqa", "CC BY 4.0", "card of lmms-lab/textvqa", text_vqa, hub="lmms-lab/textvqa"),
    Source(
        "tally_qa",
        "not stated",
        "allenai/molmo, olmo/hf_datasets/tally_qa.py",
        tally_qa,
        splits={"train": "train", "test": "test"},
        group="image",
        read=lambda folder, split: read_json(folder, f"{split}.json"),
        by_hand="unpack https://github.com/manoja328/tallyqa (tallyqa.zip), COCO's train2014.zip and val2014.zip from"
        f" {COCO} and Visual Genome's two picture archives (VG_100K, VG_100K_2) into one folder DIR",
    ),
    Source(
        "gqa",
        "CC BY 4.0*",
        "the names of the official JSON, which was not seen",
        gqa,
        splits={"train": "train", "validation": "val", "testdev": "testdev"},
        group="imageId",
        read=read_gqa,
        confirmed=False,
        by_hand="unpack questions (1.2) and images of https://cs.stanford.edu/people/dorarad/gqa/download.html into one"
        " folder DIR, so that it holds SPLIT_balanced_questions.json and images/",
    ),
    Source(
        "count_bench_qa",
        "not stated",
        "card of vikhyatk/CountBenchQA",
        count_bench_qa,
        {"test": "test"},
        hub="vikhyatk/CountBenchQA",
        aliases=("countbench_qa",),
    ),
    Source(
        "real_world_qa",
        "CC BY-ND 4.0",
        "dataset card",
        real_world_qa,
        {"test": "test"},
        "xai-org/RealworldQA",
        aliases=("real_world_qa_no_instruction",),
    ),
]
