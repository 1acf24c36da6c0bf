"""Documents, charts and diagrams in their published layouts, through tools/download.py to shards and back."""

from pathlib import Path

import numpy as np
import pytest
from picture_server import picture
from source_helpers import Hub, build, shown

from molmo_ds.data.decode import load_image


def test_documents(tmp_path: Path) -> None:
    row = {
        "questionId": "7",
        "question": "Date?",
        "question_types": ["form"],
        "image": shown(1, "PNG"),
        "docId": 3,
    }
    Hub(tmp_path / "doc_qa").parquet([{**row, "answers": ["1 May", "May 1"]}], image="image")
    Hub(tmp_path / "doc_qa").parquet(
        [{**row, "answers": None}], "data/test-00000-of-00001", "image"
    )
    [record] = build(tmp_path, "doc_qa")
    assert record["annotations"] == [
        {"style": "doc_qa", "question": "Date?", "answers": ["1 May", "May 1"]}
    ]
    assert record["metadata"] == {"example_id": "7"}
    assert build(tmp_path, "doc_qa", split="test")[0]["annotations"] == [
        {"style": "doc_qa", "question": "Date?"}
    ]

    hub = Hub(tmp_path / "info_qa")
    row = {
        "questionId": 65718,
        "question": "Share?",
        "image_local_name": "20471.jpeg",
        "answers": ["61%"],
    }
    hub.json("infographicsVQA_train_v1.0.json", {"dataset_name": "x", "data": [row]})
    hub.json("infographicsVQA_val_v1.0_withQT.json", {"data": [{**row, "questionId": 1}]})
    hub.file("images/20471.jpeg", picture(2))
    for split, number in (("train", 65718), ("validation", 1)):
        [record] = build(tmp_path, "info_qa", split=split)
        assert record["annotations"] == [
            {"style": "info_qa", "question": "Share?", "answers": ["61%"]}
        ]
        assert record["metadata"] == {"example_id": number}

    hub = Hub(tmp_path / "st_qa")
    rows = [
        {"question_id": i, "question": f"q{i}", "file_path": "coco/a.jpg", "answers": [str(i)]}
        for i in range(1026)
    ]
    hub.json("train_task_3.json", {"data": rows[::-1]})
    hub.file("coco/a.jpg", picture(3, (8, 8)))
    order = np.arange(1026)
    # the reference's split: the first 1024 of the ids in this order
    np.random.RandomState(63069).shuffle(order)
    train = build(tmp_path, "st_qa")
    held_out = build(tmp_path, "st_qa", split="validation")
    assert [r["metadata"]["example_id"] for r in train] == order[1024:].tolist()
    assert [r["metadata"]["example_id"] for r in held_out] == order[:1024].tolist()
    assert train[0]["annotations"][0]["answers"] == [str(order[1024])]


def test_charts(tmp_path: Path) -> None:
    rows = [
        {"image": shown(1, "PNG"), "query": q, "label": [a], "human_or_machine": h}
        for q, a, h in (("x", "1", 0), ("y", "2", 1))
    ]
    for name in ("train", "val"):
        for source in ("chart_qa", "chart_qa_weighted"):
            Hub(tmp_path / source).parquet(rows, f"data/{name}-00000-of-00001", "image")
    one, two = build(tmp_path, "chart_qa")
    asked = {"style": "chart_qa", "question": "x", "answers": ["1"]}
    assert one["annotations"] == [asked]  # weights are for the name that says so
    one, two = build(tmp_path, "chart_qa_weighted")
    assert one["annotations"][0] | {"weight": 0} == {
        "style": "chart_qa",
        "question": "x",
        "answers": ["1"],
        "weight": 0,
    }
    assert one["annotations"][0]["weight"] == pytest.approx(1.4772, abs=5e-5)
    assert two["annotations"][0]["weight"] == pytest.approx(0.5228, abs=5e-5)
    assert [r["metadata"]["is_human"] for r in (one, two)] == [True, False]
    assert 7398 * one["annotations"][0]["weight"] == pytest.approx(
        20901 * two["annotations"][0]["weight"]
    )
    held_out = build(tmp_path, "chart_qa", split="validation")
    assert held_out[0]["annotations"] == [{"style": "chart_qa", "question": "x", "answers": ["1"]}]

    hub = Hub(tmp_path / "dv_qa")
    rows = [
        {"image": "bar_1.png", "question": q, "answer": a, "answer_bbox": [], "question_id": q}
        for q, a in (("a", "yes"), ("b", "8"))
    ]
    hub.json("train_qa.json", rows)
    hub.json("val_hard_qa.json", rows[:1])
    hub.file("images/bar_1.png", picture(2, kind="PNG"))
    [record] = build(tmp_path, "dv_qa")
    assert record["annotations"] == [
        {"style": "dv_qa", "question": "a", "answer": "yes"},
        {"style": "dv_qa", "question": "b", "answer": "8"},
    ]
    assert build(tmp_path, "dv_qa", split="validation_hard")[0]["metadata"] == {
        "image_id": "bar_1.png"
    }

    rows = [
        {"image_index": 5, "question_string": q, "answer": a, "question_id": i}
        for i, (q, a) in enumerate((("up?", 1), ("down?", 0)))
    ]
    for name, folder in (("figure_qa", "train1"), ("plot_qa", "train")):
        hub = Hub(tmp_path / name)
        hub.json(f"{folder}/qa_pairs.json", {"qa_pairs": rows})
        hub.file(f"{folder}/png/5.png", picture(3, kind="PNG"))
        [record] = build(tmp_path, name)
        assert record["annotations"] == [
            {"style": name, "question": "up?", "answer": "1"},
            {"style": name, "question": "down?", "answer": "0"},
        ]
        assert record["metadata"] == {"image_id": 5}

    hub = Hub(tmp_path / "tabwmp_da")
    problem = {
        "question": "Sum?",
        "choices": None,
        "answer": "1,234",
        "unit": None,
        "table_title": None,
        "split": "dev",
    }
    hub.json("problems_dev.json", {"12": problem})
    hub.file("tables/12.png", picture(4, kind="PNG"))
    [record] = build(tmp_path, "tabwmp_da", split="validation")
    assert record["annotations"] == [{"style": "tabwmp_da", "question": "Sum?", "answer": "1,234"}]
    assert record["metadata"] == {"example_id": 12}


def test_ai2d(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "ai2_diagram_v2_mix_transparent")
    plain = {
        "abcLabel": False,
        "answerTexts": ["leaf", "root", "leaf", "{}"],
        "correctAnswer": 1,
        "questionId": "1.png-0",
    }
    lettered = {
        "abcLabel": True,
        "answerTexts": ["b", "A", "none", "c"],
        "correctAnswer": 0,
        "questionId": "1.png-1",
    }
    mixed = {
        "abcLabel": True,
        "answerTexts": ["x", "y", "b", "c"],
        "correctAnswer": 3,
        "questionId": "1.png-2",
    }
    hub.json(
        "questions/1.png.json",
        {"imageName": "1.png", "questions": {"Which?": plain, "Where?": lettered, "So?": mixed}},
    )
    texts = {
        f"T{i}": {"replacementText": t, "rectangle": [[5, 5 + 10 * i], [25, 14 + 10 * i]]}
        for i, t in enumerate("ABC")
    }
    hub.json("annotations/1.png.json", {"text": texts})
    hub.file("images/1.png", picture(1, (60, 50), "PNG"))
    for number in range(2, 390):
        hub.json(
            f"questions/{number}.png.json",
            {"imageName": "x.png", "questions": {"Q?": {**plain, "questionId": f"{number}"}}},
        )
    for number in (390, 391):  # without a question, which the draw must not count
        hub.json(f"questions/{number}.png.json", {"imageName": "x.png", "questions": {}})
    hub.file("images/x.png", picture(2, (8, 8), "PNG"))
    hub.file("ai2d_test_ids.csv", b"1\n2\n")

    one, *others = build(tmp_path, "ai2_diagram_v2_mix_transparent", split="test")
    assert one["annotations"] == [
        {
            "style": "ai2_diagram",
            "question": "Which?",
            "options": ["leaf", "root"],
            "answer_index": 1,
        }
    ]
    assert one["pixels"] == [picture(1, (60, 50), "PNG")]
    opaque, clear = others[:2]
    assert opaque["annotations"] == clear["annotations"]
    assert opaque["annotations"] == [
        {
            "style": "ai2_diagram_no_letter",
            "question": "Where?",
            "options": ["B", "A", "none", "C"],
            "answer_index": 0,
            "unlabelled": True,
        }
    ]
    assert [r["metadata"]["has_transparent_box"] for r in others] == [
        False,
        True,
        False,
        True,
        False,
    ]
    assert others[2]["annotations"] == [  # two letters of four options: not the letters' question
        {
            "style": "ai2_diagram",
            "question": "So?",
            "options": ["x", "y", "b", "c"],
            "answer_index": 3,
        }
    ]
    before, after, tinted = (load_image(r["pixels"][0]).astype(int) for r in (one, opaque, clear))
    assert (after[6, 23] == (25, 249, 255)).all()  # inside box A, right of its letter
    assert (abs(tinted[6, 24] - (before[6, 24] + np.array([25, 249, 255])) / 2) <= 1.5).all()
    assert (after[:, 30:] == before[:, 30:]).all()
    assert (after[8:12, 10:20].min(axis=2) < 25).any()  # the letter is black

    numbers = np.arange(3, 390)  # pictures 1 and 2 are the test's
    np.random.RandomState(5961).shuffle(numbers)
    train = build(tmp_path, "ai2_diagram_v2_mix_transparent")
    assert [r["metadata"]["image_id"] for r in train] == sorted(numbers[384:].tolist())
    assert len(train) == 3
