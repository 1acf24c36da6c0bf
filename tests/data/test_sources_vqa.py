"""Questions about photographs in their published layouts, through tools/download.py to shards and back."""

import json
from pathlib import Path

from picture_server import picture
from source_helpers import Hub, build, shown


def test_coco_questions(tmp_path: Path) -> None:
    answers = [
        {"answer": "two", "raw_answer": "Two", "answer_id": 1},
        {"answer": "2", "raw_answer": "2", "answer_id": 2},
    ]
    questions = [
        {"image_id": 9, "question": "How many?", "question_id": 90},
        {"image_id": 10, "question": "Which?", "question_id": 100},
        {"image_id": 9, "question": "What colour?", "question_id": 91},
    ]
    notes = [
        {"image_id": q["image_id"], "question_id": q["question_id"], "answers": answers}
        for q in questions
    ]
    for name, prefix, style, expected in (
        ("coco_2014_vqa_multi", "v2_", "vqa2", ["two", "2"]),
        ("okvqa", "", "okvqa", ["Two", "2"]),
    ):
        hub = Hub(tmp_path / name)
        for year in ("train2014", "val2014"):
            hub.json(
                f"{prefix}OpenEnded_mscoco_{year}_questions.json",
                {"info": {}, "questions": questions},
            )
            hub.json(f"{prefix}mscoco_{year}_annotations.json", {"info": {}, "annotations": notes})
            hub.file(f"{year}/COCO_{year}_000000000009.jpg", picture(9))
        records = build(tmp_path, name)  # picture 10 is not there
        asked = [
            {"style": style, "question": question, "answers": expected}
            for question in ("How many?", "What colour?")
        ]
        # VQA's questions of a picture are one record, OK-VQA's are not, as in the reference
        grouped = [asked] if style == "vqa2" else [[one] for one in asked]
        assert [record["annotations"] for record in records] == grouped
        assert records[0]["metadata"]["image_id"] == 9
        report = json.loads((tmp_path / "out" / f"{name}-train" / "report.json").read_text())
        assert report["dropped"] == {"picture file missing": 1}
        one, two = build(tmp_path, name, split="validation")  # evaluation asks one by one
        assert [r["metadata"] for r in (one, two)] == [
            {"image_id": 9, "example_id": i} for i in (90, 91)
        ]
        assert one["annotations"] == [asked[0]]
    hub = Hub(tmp_path / "coco_2014_vqa_multi")
    hub.json("v2_OpenEnded_mscoco_test2015_questions.json", {"questions": questions[:1]})
    hub.file("test2015/COCO_test2015_000000000009.jpg", picture(9))
    [record] = build(tmp_path, "vqa2", split="test")
    assert record["annotations"] == [{"style": "vqa2", "question": "How many?"}]


def test_photograph_questions(tmp_path: Path) -> None:
    row = {
        "image": shown(1),
        "question_id": "q1",
        "question": "Why?",
        "choices": ["a", "b", "c", "d"],
    }
    row |= {
        "correct_choice_idx": 2,
        "direct_answers": "['rain', 'rain', 'sun']",
        "difficult_direct_answer": True,
    }
    for name in ("a_okvqa_mc", "a_okvqa_da"):
        Hub(tmp_path / name).parquet([row], image="image")
        easy = {
            **row,
            "difficult_direct_answer": False,
            "correct_choice_idx": None,
            "direct_answers": None,
        }
        Hub(tmp_path / name).parquet([easy, row], "data/test-00000-of-00001", "image")
    [record] = build(tmp_path, "a_okvqa_mc")
    assert record["annotations"] == [
        {
            "style": "a_okvqa_mc",
            "question": "Why?",
            "options": ["a", "b", "c", "d"],
            "answer_index": 2,
        }
    ]
    assert record["metadata"] == {"example_id": "q1"}
    [record] = build(tmp_path, "a_okvqa_da")
    assert record["annotations"] == [
        {"style": "a_okvqa_da", "question": "Why?", "answers": ["rain", "rain", "sun"]}
    ]
    records = build(tmp_path, "a_okvqa_mc", split="test")
    assert [r["annotations"][0].get("answer_index") for r in records] == [None, 2]
    [record] = build(tmp_path, "a_okvqa_da", split="test")  # the difficult one is not evaluated
    assert record["annotations"] == [{"style": "a_okvqa_da", "question": "Why?"}]

    row = {
        "image_id": "i",
        "question_id": 5,
        "question": "Which word?",
        "image": shown(2),
        "answers": ["stop", "STOP"],
    }
    Hub(tmp_path / "text_vqa").parquet([{**row, "flickr_300k_url": "https://f"}], image="image")
    [record] = build(tmp_path, "text_vqa")
    assert record["annotations"] == [
        {"style": "text_vqa", "question": "Which word?", "answers": ["stop", "STOP"]}
    ]
    assert record["metadata"] == {"image_id": "i", "example_id": 5, "image_url": "https://f"}

    hub = Hub(tmp_path / "tally_qa")
    rows = [
        {
            "answer": 3,
            "image": "VG_100K_2/4.jpg",
            "image_id": 4,
            "question": "How many dogs?",
            "question_id": 1,
        },
        {
            "answer": 0,
            "image": "VG_100K_2/4.jpg",
            "image_id": 4,
            "question": "How many cats?",
            "question_id": 2,
        },
    ]
    hub.json(
        "train.json",
        [
            {**row, "issimple": i == 0, "data_source": "imported_genome"}
            for i, row in enumerate(rows)
        ],
    )
    hub.file("VG_100K_2/4.jpg", picture(4))
    [record] = build(tmp_path, "tally_qa")
    assert record["annotations"] == [
        {"style": "tally_qa", "question": "How many dogs?", "answer": "3"},
        {"style": "tally_qa", "question": "How many cats?", "answer": "0"},
    ]
    assert record["metadata"] == {"image_id": 4}

    hub = Hub(tmp_path / "gqa")
    rows = {
        f"0{i}": {
            "imageId": "n4",
            "question": f"q{i}",
            "answer": "no",
            "types": {"structural": "verify"},
        }
        for i in "12"
    }
    hub.json("val_balanced_questions.json", rows)
    hub.file("images/n4.jpg", picture(4))
    one, two = build(tmp_path, "gqa", split="validation")
    assert one["annotations"] == [{"style": "gqa", "question": "q1", "answer": "no"}]
    assert two["metadata"] == {"image_id": "n4", "example_id": "02", "question_kind": "verify"}

    row = {
        "image": shown(3),
        "text": "Four hats",
        "question": "How many hats are there?",
        "number": 4,
    }
    Hub(tmp_path / "count_bench_qa").parquet([row], "data/test-00000-of-00001", "image")
    [record] = build(tmp_path, "count_bench_qa", split="test")
    assert record["annotations"] == [
        {"style": "point_count", "question": "How many hats are there?"}
    ]
    assert record["metadata"] == {"count": 4}

    short = "How far?\nPlease answer directly with a single word or number."
    choice = "Which?\nA. x\nB. y\nPlease answer directly with only the letter of the correct option and nothing else."
    rows = [
        {"image": shown(1, "WEBP"), "question": q, "answer": a}
        for q, a in ((short, "5"), (choice, "B"))
    ]
    Hub(tmp_path / "real_world_qa").parquet(rows, "data/test-00000-of-00001", "image")
    one, two = build(tmp_path, "real_world_qa", split="test")
    assert one["images"] == ["webp"]
    assert one["annotations"] == [
        {"style": "eval_short_answer", "question": "How far?", "answer": "5"}
    ]
    assert two["annotations"] == [
        {"style": "eval_multiple_choice", "question": choice, "answer": "B"}
    ]
    assert two["metadata"] == {"answer": "B", "question_type": "multiple_choice"}
