"""Exams, clocks and Android Control in their published layouts, through tools/download.py to shards and back."""

import gzip
import json
import struct
from pathlib import Path

from picture_server import picture
from source_helpers import Hub, build, shown

from molmo_ds.data.sources import android


def test_exams(tmp_path: Path) -> None:
    row = {
        "image": shown(1, "PNG"),
        "question": "Which is it?",
        "choices": ["a", "b"],
        "answer": 1,
        "hint": "",
    }
    Hub(tmp_path / "science_qa_img").parquet(
        [{**row, "image": None}, row, {**row, "hint": "Look."}], image="image"
    )
    one, two = build(tmp_path, "science_qa_img")
    assert one["__key__"] == "science_qa_img-00000001"
    assert one["annotations"] == [
        {
            "style": "science_qa",
            "question": "Which is it?",
            "options": ["a", "b"],
            "answer_index": 1,
        }
    ]
    assert two["annotations"][0]["question"] == "Look.\nWhich is it?"
    report = json.loads((tmp_path / "out" / "science_qa_img-train" / "report.json").read_text())
    assert report["dropped"] == {"question without a picture": 1}

    base = {"question": "<image 1> What?", "image_1": shown(1, "PNG"), "explanation": ""}
    art = [
        {
            **base,
            "id": "v_Art_1",
            "options": "['one', \"it's two\"]",
            "answer": "B",
            "question_type": "multiple-choice",
        },
        {
            **base,
            "id": "v_Art_2",
            "options": "[\"<img='a.png'>\", \"<img='b.png'>\"]",
            "answer": "A",
            "question_type": "multiple-choice",
        },
    ]
    maths = [
        {
            **base,
            "id": "v_Math_1",
            "options": "[]",
            "answer": "['24/7', '3.429']",
            "question_type": "open",
        },
        {**base, "id": "v_Math_2", "options": "[]", "answer": "8", "question_type": "open"},
    ]
    for subject, rows in (("Art", art), ("Math", maths)):
        Hub(tmp_path / "mmmu").parquet(rows, f"{subject}/validation-00000-of-00001", "image_1")
    first, second, third, fourth = build(tmp_path, "mmmu", split="validation")
    assert first["annotations"] == [
        {
            "style": "a_okvqa_mc",
            "question": "<image 1> What?",
            "options": ["one", "it's two"],
            "answer_index": 1,
        }
    ]
    assert second["images"] == []
    assert third["annotations"] == [
        {"style": "vqa2", "question": "<image 1> What?", "answers": ["24/7", "3.429"]}
    ]
    assert fourth["annotations"][0]["answers"] == ["8"]
    assert first["metadata"] == {
        "example_id": "v_Art_1",
        "question_type": "multiple-choice",
        "answer": "B",
    }

    base = {"image": "images/1.jpg", "decoded_image": shown(1), "unit": None, "precision": 1.0}
    rows = [
        {
            **base,
            "pid": "1",
            "question": "Hint: Choose.\nQuestion: How long?",
            "choices": ["2", "5"],
            "answer": "5",
            "question_type": "multi_choice",
            "answer_type": "text",
        },
        {
            **base,
            "pid": "2",
            "question": "What is x?",
            "choices": None,
            "answer": "1.2",
            "question_type": "free_form",
            "answer_type": "float",
        },
    ]
    Hub(tmp_path / "math_vista").parquet(rows, "data/testmini-00000-of-00001", "decoded_image")
    one, two = build(tmp_path, "math_vista", split="validation")
    assert one["annotations"] == [
        {
            "style": "eval_multiple_choice",
            "question": "How long?",
            "options": ["2", "5"],
            "answer_index": 1,
        }
    ]
    assert two["annotations"] == [
        {"style": "eval_short_answer", "question": "What is x?", "answer": "1.2"}
    ]
    assert two["metadata"]["precision"] == 1.0
    assert one["metadata"]["query"] == "Hint: Choose.\nQuestion: How long?"


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out = out + bytes([value & 127 | 128])
        value = value >> 7
    return out + bytes([value])


def message(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(varint(number << 3 | 2) + varint(len(data)) + data for number, data in fields)


def example(features: dict[str, list], packed: bool = True) -> bytes:
    """A serialised tf.train.Example, written from the protobuf encoding's description."""
    entries = []
    for name, values in features.items():
        if isinstance(values[0], bytes):
            feature = message((1, message(*((1, value) for value in values))))
        elif isinstance(values[0], float):
            feature = message((2, message((1, struct.pack(f"<{len(values)}f", *values)))))
        elif packed:
            feature = message((3, message((1, b"".join(map(varint, values))))))
        else:
            feature = message((3, b"".join(varint(1 << 3) + varint(value) for value in values)))
        entries.append((1, message((1, name.encode()), (2, feature))))
    return message((1, message(*entries)))


def test_clocks_in_photographs(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "clock_bench")
    hub.file(
        "movies_final.csv",
        'file_name,hour,minute,img_id,bbox_det\ncafé.png,12,5,7,"[1, 2, 3, 4]"\n'.encode(),
    )
    hub.file("ClockMovies/images/cafe\u0301.png", picture(1, kind="PNG"))
    [record] = build(tmp_path, "clock_bench", split="movies")
    assert record["annotations"] == [{"style": "clocks", "question": "What time is being shown?"}]
    assert record["metadata"] == {"image_id": "7", "hour": 12, "minute": 5, "second": -1}


def node(edges: dict[int, int], visible: bool = True) -> bytes:
    """An element of a screen: its bounds by field (1 left, 2 top, 3 right, 4 bottom), and whether it is seen."""
    bounds = b"".join(
        varint(number << 3) + varint(value % (1 << 64)) for number, value in edges.items()
    )
    return message((2, bounds)) + (varint(23 << 3) + varint(1) if visible else b"")


def forest() -> bytes:
    """Two windows with elements around (540, 1200)."""
    whole = node({3: 1080, 4: 2400})  # left and top are 0, and not written
    narrow = node({1: 500, 2: 1000, 3: 600, 4: 1300})
    lower = node({1: 500, 2: 1100, 3: 600, 4: 1300})
    hidden = node({1: 539, 2: 1199, 3: 541, 4: 1201}, visible=False)
    elsewhere = node({1: -4, 2: 3, 3: 1080, 4: 90})
    first = message((11, message((1, whole), (1, narrow), (1, hidden))))
    return message((1, first), (1, message((11, message((1, lower), (1, elsewhere))))))


def apps() -> bytes:
    """A screen with icons: a hidden one and its copy in view, one of another package, and two that begin alike."""

    def icon(text: str, left: int, package: str, visible: bool = True) -> bytes:
        edges = {1: left, 2: 200, 3: left + 41, 4: 280}
        known = message((6, package.encode()), (7, text.encode()))
        return node(edges, visible) + known

    icons = (
        icon("Zoho", 5, "a", visible=False),
        icon("Zoho", 10, "a"),  # says what one before it says, so it is not looked at
        icon("Mail", 50, "b"),
        icon("Zoho Meeting", 300, "c"),
        icon("ZOHO Books", 100, "b"),  # of a package that comes before
    )
    return message((1, message((11, message(*((1, one) for one in icons))))))


def test_the_box_of_an_app_is_found_as_in_the_reference() -> None:
    screen = apps()
    assert android.app_box("zoho", screen) == (100, 200, 140, 280)
    assert android.app_box("mail", screen) == (50, 200, 90, 280)
    assert android.app_box("Mail", screen) is None  # the reference finds no name with a capital
    assert android.app_box("zoho meeting", screen) == (300, 200, 340, 280)


def test_android_control(tmp_path: Path) -> None:
    hub = Hub(tmp_path / "android_control")
    actions = [
        {"action_type": "click", "x": 540, "y": 1200},
        {"action_type": "open_app", "app_name": "Zoho Meeting"},
        {"action_type": "long_press", "x": 1, "y": 2399},
        {"action_type": "open_app", "app_name": "zoho"},
    ]
    features = {
        "episode_id": [300],
        "goal": [b"Open the meeting"],
        "screenshots": [picture(i, (27, 60), "PNG") for i in range(5)],
        "screenshot_widths": [1080] * 5,
        "screenshot_heights": [2400] * 5,
        "actions": [json.dumps(action).encode() for action in actions],
        "step_instructions": [b"Tap it", b"Open Zoho", b"Hold it", b"Open zoho"],
        "accessibility_trees": [forest(), forest(), message(), apps()],
        "noise": [0.5],
    }
    records = [example(features), example({**features, "episode_id": [301]}, packed=False)]
    framed = b"".join(struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records)
    hub.file("android_control-00000-of-00020", gzip.compress(framed))
    hub.json("splits.json", {"train": [300], "validation": [], "test": [301, 5]})
    hub.json("test_subsplits.json", {"IDD": [301], "app_unseen": [5]})
    first, second, third, _ = build(tmp_path, "android_control")
    assert [r["__key__"] for r in (first, third)] == [
        "android_control-00000000-0",
        "android_control-00000000-2",
    ]
    assert first["pixels"] == [picture(0, (27, 60), "PNG")]
    asked = [
        "low_level: Tap it",
        "high_level: Open the meeting low_level: Tap it",
        "high_level: Open the meeting",
    ]
    answer = "Click(50.0, 50.0)"
    assert first["annotations"] == [
        *({"style": "android_control", "question": q, "answer": answer} for q in asked),
        {
            "style": "android_control",
            "question": "high_level_cot: Open the meeting",
            "answer": f"Plan: Tap it Action: {answer}",
        },
    ]
    assert second["annotations"][0]["answer"] == "Open App Zoho Meeting"
    assert third["annotations"][0]["answer"] == "Long Press(0.1, 100.0)"
    assert first["metadata"] == {"episode_id": 300, "step": 0, "target_action": answer}
    test = build(tmp_path, "android_control", split="test")
    assert len(test) == 16
    assert [r["metadata"]["mode"] for r in test[:4]] == ["ll", "hl_ll", "hl", "hl_cot"]
    assert test[4]["metadata"]["episode_id"] == 301
    boxes = [record["metadata"]["target_box"] for record in test[::4]]
    # pixels to percent of 1080 x 2400: the lower of the two narrowest; none; 10 pixels around (1, 2399);
    # centre (120, 240) of the first that says zoho..., plus and minus half of 41 x 80, halves rounded down
    assert boxes == [
        "[46.3, 45.8, 55.6, 54.2]",
        "",
        "[-0.8, 99.5, 1.0, 100.4]",
        "[9.3, 8.3, 13.0, 11.7]",
    ]
