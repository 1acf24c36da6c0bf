"""make_shards on the forms of other trainers, on CSV, and on points, boxes and addresses: said, counted or refused."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from picture_server import Server
from PIL import Image

from molmo_ds.cli import make_shards as tool
from molmo_ds.config import PromptConfig
from molmo_ds.data.read.shards import ShardSet
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.testing.streams import picture

SIZE = (400, 200)  # of a.png
ASK = {"role": "user", "content": "Which?"}
TELL = {"role": "assistant", "content": "A boat."}
PART = {"type": "text", "text": "Which?"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((SIZE[1], SIZE[0], 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "b.jpg").write_bytes(picture(1))
    return tmp_path


def make(place: Path, kind: str, text: str, *options: str) -> list[dict[str, Any]]:
    """The records that make_shards writes of a file."""
    file = place / f"rows.{kind}"
    file.write_text(text)
    out = place / f"out{len(list(place.glob('out*')))}"
    tool.main([kind, str(file), str(out), "--workers", "1", "--max-bad-share", "1", *options])
    shards = ShardSet(str(out))
    return [shards.read(i) for i in range(len(shards))]


def lines(place: Path, *rows: dict[str, Any], options: tuple[str, ...] = ()) -> list[dict]:
    return make(place, "jsonl", "\n".join(map(json.dumps, rows)), *options)


def learnt(record: dict[str, Any]) -> list[str]:
    """The turns of its one annotation, as training formats them."""
    formatter = PromptFormatter(PromptConfig(system_prompt="none", message_format="none"))
    size = record["sizes"][0] if record.get("sizes") else None
    (annotation,) = record["annotations"]
    return formatter.messages(annotation, np.random.RandomState(0), size)


FORMS = [
    {"messages": [ASK, TELL], "images": ["a.png"]},
    {"query": "<image>Which?", "response": "A boat.", "images": ["a.png"], "history": []},
    {"conversation": [{"human": "<image>Which?", "assistant": "A boat."}], "image": "a.png"},
    {"instruction": "Which?", "input": "", "output": "A boat.", "image": "a.png"},
    {"prompt": "Which?", "completion": "A boat.", "image": "a.png"},
    {"prompt": [ASK], "completion": [TELL], "images": ["a.png"]},
    {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.png"}}, PART],
            },
            TELL,
        ]
    },
    {"messages": [{"role": "user", "content": [{"type": "image", "path": "a.png"}, PART]}, TELL]},
    {
        "conversations": [
            {"from": "human", "value": "<image>\nWhich?"},
            {"from": "gpt", "value": "A boat."},
        ],
        "image": "a.png",
    },
]


def test_forms_of_other_trainers_say_the_same(place: Path, capsys: Any) -> None:
    made = lines(place, *FORMS, options=("--style", "user_qa"))
    assert len(made) == len(FORMS) and "columns not used" not in capsys.readouterr().out
    assert [learnt(record) for record in made] == [[" Which?", " A boat."]] * len(FORMS)
    pixels = {bytes(record["pixels"][0]) for record in made}
    assert pixels == {(place / "a.png").read_bytes()}


def test_earlier_turns_come_first(place: Path) -> None:
    row = {"query": "And?", "response": "Blue.", "history": [["<image>Which?", "A boat."]]}
    (made,) = lines(place, row | {"images": ["a.png"]}, options=("--style", "user_qa"))
    assert learnt(made) == [" Which?", " A boat.", " And?", " Blue."]


def test_a_picture_inside_a_message(place: Path) -> None:
    """A data: URL, and its base64 is not learnt or stored as text."""
    data = base64.b64encode(picture(1)).decode()
    part = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
    (made,) = lines(
        place,
        {"messages": [{"role": "user", "content": [part, PART]}, TELL]},
        options=("--style", "x"),
    )
    assert bytes(made["pixels"][0]) == picture(1) and data not in json.dumps(made["annotations"])


GROUNDING = {
    "messages": [
        {"role": "user", "content": "<image>Find the <ref-object>"},
        {"role": "assistant", "content": "<bbox><bbox>"},
    ],
    "images": ["a.png"],
    "objects": {"ref": ["sheep"], "bbox": [[200, 100, 400, 200], [40, 20]]},
}


def test_objects_of_ms_swift_become_points(place: Path) -> None:
    """Boxes in pixels by default and in shares by bbox_type; (300, 150) of 400 x 200 is 75 %, (40, 20) is 10 %."""
    shares = {"ref": ["a dog"], "bbox": [[0.25, 0.0, 0.75, 1.0]], "bbox_type": "norm1"}
    turns = [
        {"role": "user", "content": "<image>Tell."},
        {"role": "assistant", "content": "<ref-object><bbox> plays."},
    ]
    options = ("--style", "user_qa")
    first, second = lines(
        place, GROUNDING, GROUNDING | {"messages": turns, "objects": shares}, options=options
    )
    points = '<points x1="10.0" y1="10.0" x2="75.0" y2="75.0" alt="sheep">sheep</points>'
    assert learnt(first) == [" Find the sheep", f" {points}"]
    assert learnt(second)[1] == ' <point x="50.0" y="50.0" alt="a dog">a dog</point> plays.'


def boxes(*values: Any, **more: Any) -> dict[str, Any]:
    return {"image": "a.png", "style": "pointing", "label": "x", "boxes": list(values)} | more


@pytest.mark.parametrize(
    ("form", "unit", "box"),
    [
        ("xyxy", "pixels", [100, 50, 200, 150]),
        ("xywh", "pixels", [100, 50, 100, 100]),
        ("cxcywh", "shares", [0.375, 0.5, 0.25, 0.5]),
        ("xyxy", "percent", [25, 25, 50, 75]),
        ("xywh", "thousandths", [250, 250, 250, 500]),
    ],
)
def test_boxes_of_every_form_and_unit(place: Path, form: str, unit: str, box: list[float]) -> None:
    """The same box each time: its centre is learnt, and its corners in pixels are kept for scoring."""
    (made,) = lines(place, boxes(box), options=("--boxes", form, "--points-in", unit))
    assert learnt(made)[1] == ' <point x="37.5" y="50.0" alt="x">x</point>'
    assert made["annotations"][0]["boxes"] == [[100.0, 50.0, 200.0, 150.0]]


def test_a_row_that_says_its_unit_keeps_it(place: Path) -> None:
    row = {"image": "a.png", "style": "pointing", "label": "x", "points": [[0.5, 0.25]]}
    (made,) = lines(place, row | {"point_scale": 1}, options=("--points-in", "percent"))
    assert learnt(made)[1] == ' <point x="50.0" y="25.0" alt="x">x</point>'


def test_a_unit_holds_wherever_points_stand(place: Path) -> None:
    """In alternatives, in groups and in tracks, where it was not read: they were pixels without a word."""
    pointed = {"style": "pointing", "label": "x", "points": [[50, 25]]}
    boxed = {"style": "pointing", "label": "x", "boxes": [[25, 0, 75, 50]]}
    groups = {"style": "p", "label": "x", "point_groups": [{"image": 1, "points": [[50, 25]]}]}
    tracks = {"style": "p", "label": "x", "tracks": [{"time": 0.0, "points": {"a": [50, 25]}}]}
    rows = [{"one_of": [pointed, boxed]}, groups, tracks]
    records = [{"image": "a.png", "annotations": [one]} for one in rows]
    options = ("--points-in", "percent", "--boxes", "xyxy")
    first, second, third = lines(place, *records, options=options)
    for one in first["annotations"][0]["one_of"]:
        assert one["points"] == [[50, 25]] and one["point_scale"] == 100
    assert second["annotations"] == [groups | {"point_scale": 100}]
    assert third["annotations"] == [tracks | {"point_scale": 100}]
    for one in rows[1:]:  # and where none is said, one has to be
        with pytest.raises(ValueError, match="could be pixels or percent"):
            lines(place, {"image": "a.png", "annotations": [one]})


@pytest.mark.parametrize(
    ("points", "unit"),
    [([[0.5, 1]], "shares"), ([[50, 99.5]], "percent"), ([[2, 3], [100, 0]], "percent")],
)
def test_points_that_could_be_in_two_units_are_refused(
    place: Path, points: list, unit: str
) -> None:
    row = {"image": "a.png", "annotations": [{"style": "p", "label": "x", "points": points}]}
    with pytest.raises(ValueError, match=f"could be pixels or {unit}.*--points-in.*Nothing was"):
        lines(place, row)
    assert not list((place / "out0").glob("*.tar"))
    assert len(lines(place, row, options=("--points-in", "pixels"))) == 1


def test_points_that_only_pixels_fit_are_counted(place: Path, capsys: Any) -> None:
    row = {"image": "a.png", "style": "p", "label": "x", "points": [[104, 20]]}
    (made,) = lines(place, row, row | {"points": [[401, 20]]})
    assert learnt(made)[1] == ' <point x="26.0" y="10.0" alt="x">x</point>'
    assert "1 annotations whose points name no unit, taken as pixels" in capsys.readouterr().out


BAD = [
    (boxes([0, 0, 2, 2]), (), "no form was given; say --boxes, one of xyxy, xywh, cxcywh"),
    (boxes([300, 0, 200, 9]), ("--boxes", "xyxy"), "no xyxy: its right bottom lies before"),
    (boxes([300, 0, 200, 9]), ("--boxes", "xywh"), r"\[500.0, 9.0\] lies outside"),
    (boxes([1, 2, 3]), ("--boxes", "xyxy"), "must be a list of four finite numbers"),
    (boxes([1, 2, 3, 4], image=None), ("--boxes", "xyxy"), "Boxes need a picture"),
    ({"query": "q", "response": "a", "system": "Be brief."}, (), "system turn"),
    ({"messages": [ASK, TELL], "audios": ["a.wav"]}, (), "sounds, which Molmo does not hear"),
    ({"messages": [ASK, TELL], "tools": [{"type": "function"}]}, (), "tools, which Molmo cannot"),
    ({"query": "q", "response": "a", "history": [["x"]]}, (), "'history' is the list"),
    (GROUNDING | {"objects": None}, (), "'objects' is null"),
    (GROUNDING | {"objects": {"ref": ["x"], "bbox": [[1, 2]]}}, (), "'boxes' is the list .None"),
    (
        GROUNDING | {"objects": {"ref": ["x", "y"], "bbox": [[1, 2], [3, 4]]}},
        (),
        "1 names and 0 boxes more",
    ),
    (
        GROUNDING | {"objects": {"ref": ["x"], "bbox": [[1, 2], [3, 4]], "bbox_type": "norm1000"}},
        (),
        "it must be real or norm1",
    ),
    (
        GROUNDING | {"messages": [{"role": "user", "content": "What is in <bbox>?"}, TELL]},
        (),
        "reads none",
    ),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image", "url": "a.png"}, PART]},
                TELL,
            ],
            "images": ["b.jpg"],
        },
        (),
        "named in 'images' and in the turns",
    ),
    (
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "image", "url": "a.png"}, {"type": "image"}, PART],
                },
                TELL,
            ]
        },
        (),
        "name their picture and 1 do not",
    ),
    ({"image": "data:image/png,xx", "text": "t"}, (), "must hold base64"),
    ({"image": "data:;base64,x!", "text": "t"}, (), "is no base64"),
]


@pytest.mark.parametrize(("row", "options", "sentence"), BAD)
def test_what_cannot_be_used_is_skipped_and_named(
    place: Path, row: dict, options: tuple[str, ...], sentence: str, capsys: Any
) -> None:
    good = {"image": "b.jpg", "question": "Which?", "answer": "a boat"}
    assert len(lines(place, good, row, options=("--style", "user_qa", *options))) == 1
    said = capsys.readouterr()
    assert re.search(f"rows.jsonl line 2: .*{sentence}", said.err)
    assert "1 of 2 rows skipped" in said.out


CSV = "picture;what;cx;cy;by\na.png;cat;100;20;me\nb.jpg;cat;4;4;me\na.png;cat;360;200;me\na.png;dog;8;8;me\n"
SPREAD = ("--image", "picture", "--style", "pointing", "--map", "label=what", "points=cx,cy")


def test_a_table_of_points(place: Path, capsys: Any) -> None:
    """Rows of a picture and label are one annotation, wherever they stand in the file."""
    made = make(place, "csv", CSV, "--points-in", "pixels", *SPREAD)
    found = [(one["label"], one["points"]) for record in made for one in record["annotations"]]
    assert found == [("cat", [[100, 20], [360, 200]]), ("dog", [[8, 8]]), ("cat", [[4, 4]])]
    assert "columns not used: by;" in capsys.readouterr().out


def test_one_picture_one_label_and_one_point_by_several_names(place: Path, capsys: Any) -> None:
    """What would split a picture's points, or count one twice, looks right in every single row."""
    text = CSV.replace("a.png;cat;360", "./a.png;cat ;360") + "a.png; dog;8.0;8;me\n"
    made = make(place, "csv", text, "--points-in", "pixels", *SPREAD)
    found = [(one["label"], one["points"]) for record in made for one in record["annotations"]]
    assert found == [("cat", [[100, 20], [360, 200]]), ("dog", [[8, 8]]), ("cat", [[4, 4]])]
    assert "passed over: 1 points that a label has twice at one place" in capsys.readouterr().out


def test_a_label_in_large_letters_is_the_same_label(place: Path) -> None:
    """Training asks for both in small letters, and each would be half an answer."""
    text = CSV.replace("a.png;cat;360", "a.png;Cat;360")
    made = make(place, "csv", text, "--points-in", "pixels", *SPREAD)
    assert made[0]["annotations"][0]["points"] == [[100, 20], [360, 200]]
    options = [*SPREAD, "--points-in", "pixels"]
    options[options.index("pointing")] = "video_point"
    made = make(place, "csv", text, *options)
    assert [one["label"] for one in made[0]["annotations"]] == ["cat", "Cat", "dog"]


def test_rows_of_one_label_that_differ_in_what_a_record_has_once(place: Path, capsys: Any) -> None:
    text = "picture,what,cx,cy,key,weight\na.png,cat,9,9,one,1\na.png,cat,8,8,two,1\nb.jpg,cat,4,4,three,1\n"
    made = make(place, "csv", text, "--points-in", "pixels", *SPREAD)
    assert [record["__key__"] for record in made] == ["one", "three"]
    assert "1 cells of 'key' unlike the first of their picture" in capsys.readouterr().out
    make(place, "csv", text.replace("two,1", "two,2"), "--points-in", "pixels", *SPREAD)
    assert "line 3: Its 'weight' is not that of an earlier row" in capsys.readouterr().err


def test_a_point_that_is_missing_takes_its_picture_along(place: Path, capsys: Any) -> None:
    text = CSV.replace("360;200", "360;") + "a.png;cat\n"
    with pytest.raises(ValueError, match="line 6: It has 2 cells, and the header 5.*incomplete"):
        make(place, "csv", text, "--points-in", "pixels", *SPREAD)
    made = make(place, "csv", text.rsplit("\n", 2)[0], "--points-in", "pixels", *SPREAD)
    assert [record["annotations"][0]["points"] for record in made] == [[[4, 4]]]
    assert re.search(r"line 4: points is \(360, None\), but must be 2", capsys.readouterr().err)


def test_a_table_of_answers(place: Path, capsys: Any) -> None:
    """Cells are texts, lists are JSON, empty cells are absent, a quoted cell may hold a line's end."""
    text = (
        "image,question,answers,answer,weight\n"
        'a.png,"Which,\nthen?","[""x"", ""x""]",,0.5\nb.jpg,Q,,007,\nb.jpg,Q,[broken,,\nb.jpg,Q\n'
    )
    first, second = make(place, "csv", text, "--style", "vqa2")
    assert first["annotations"] == [
        {"style": "vqa2", "question": "Which,\nthen?", "answers": ["x", "x"], "weight": 0.5}
    ]
    assert second["annotations"][0]["answer"] == "007"
    said = capsys.readouterr().err
    assert "line 5: 'answers' is the text '[broken'" in said and "line 6: It has 2 cells" in said


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("image,answer\n", ("--map", "label=what"), "has no column 'what'.*names image, answer"),
        ("image,x,x\n", (), "two columns 'x'"),
        ("image,x,y\n", ("--map", "points=x,y,y"), "gives points 3 columns; it has 2"),
        ("image,x,y\n", ("--map", "label=x,y"), "only points=X,Y or boxes=A,B,C,D"),
    ],
)
def test_a_table_that_cannot_be_read(
    place: Path, text: str, options: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make(place, "csv", text, "--style", "p", *options)


def test_a_parquet_file(place: Path) -> None:
    """A table fills absent keys of its structs with null; pictures are bytes in a column of their own."""
    told = {"role": "assistant", "content": [{"type": "text", "text": "A boat."}]}
    chat = [{"role": "user", "content": [{"type": "image"}, PART]}, told]
    rows = datasets.Dataset.from_list([{"images": [{"bytes": picture(1)}], "messages": chat}])
    rows = rows.cast_column("images", datasets.List(datasets.Image()))
    rows.to_parquet(place / "rows.parquet")
    options = ["--workers", "1", "--style", "user_qa"]
    tool.main(["dataset", str(place / "rows.parquet"), str(place / "out"), *options])
    made = ShardSet(str(place / "out")).read(0)
    assert learnt(made) == [" Which?", " A boat."] and bytes(made["pixels"][0]) == picture(1)
    with pytest.raises(ValueError, match="is no data set: give a folder"):
        tool.main(["dataset", str(place / "a.png"), str(place / "other"), *options])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.stop()


def test_pictures_by_address(place: Path, server: Server, capsys: Any) -> None:
    """Each address is asked for once and kept; one that is gone is a row skipped with the server's answer."""
    rows = [
        {"image": server.url("good/5"), "text": "t"},
        {"images": [server.url("good/5"), "a.png"], "text": "t"},
        {"image": server.url("missing/1"), "text": "t"},
    ]
    options = ("--style", "long_caption", "--store", str(place / "store"))
    for _ in range(2):
        made = lines(place, *rows, options=options)
        assert [len(record["images"]) for record in made] == [1, 2]
        assert made[0]["pixels"][0] == made[1]["pixels"][0]
        assert "missing/1 could not be fetched: HTTP 404" in capsys.readouterr().err
    assert server.hits["/good/5"] == 1
    with pytest.raises(ValueError, match="There is no sample"):
        lines(place, rows[0], options=("--style", "long_caption"))
    assert "fetch the pictures first with --store" in capsys.readouterr().err
