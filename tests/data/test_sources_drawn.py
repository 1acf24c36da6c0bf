"""CoSyn, Tulu and the turned clocks: columns as published, what is left out, what is drawn at random."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from source_helpers import Hub, build, shown

from molmo_ds.config import PromptConfig
from molmo_ds.data import sources
from molmo_ds.data.sample.prompts import PromptFormatter
from molmo_ds.data.sources import texts
from molmo_ds.data.sources import turn_clock as clocks
from molmo_ds.data.sources.fetching.records import records
from molmo_ds.data.sources.source import Cut
from molmo_ds.data.sources.turn_clock import draw_angle, rotate, turn_clock


def test_cosyn(tmp_path: Path) -> None:
    pairs = {"question": ["a", "b"], "explanation": ["so", "as"], "answer": ["1", "2"]}
    row = {"id": "c7", "image": shown(1, "PNG"), "qa_pairs": pairs}
    for name, style, answers in (
        ("cosyn_chart", "cosyn_chart", ["1", "2"]),
        ("cosyn_chart_exp", "cosyn_chart_exp", ["so Answer: 1", "as Answer: 2"]),
    ):
        Hub(tmp_path / name).parquet([row], "chart/train-00000-of-00001", "image")
        [record] = build(tmp_path, name)
        assert record["annotations"] == [
            {"style": style, "question": question, "answer": answer}
            for question, answer in zip("ab", answers)
        ]
        assert record["metadata"] == {"image_id": "c7"}
    structs = [dict(zip(pairs, values)) for values in zip(*pairs.values())]
    [item] = sources.get("cosyn_music_exp").adapt({**row, "qa_pairs": structs}, "train")
    assert [one["answer"] for one in item.annotations] == ["so Answer: 1", "as Answer: 2"]

    row = {"id": "p1", "image": shown(1, "PNG"), "questions": ["Where is it?"], "names": ["Door"]}
    row["answer_points"] = [{"x": [10.0, 5.0], "y": [20.0, 1.0]}]
    Hub(tmp_path / "cosyn_point").parquet([row], image="image")
    [record] = build(tmp_path, "cosyn_point")
    asked = PromptFormatter(PromptConfig()).messages(
        record["annotations"][0], np.random.RandomState(0)
    )
    assert asked == [
        " User: Where is it? Assistant:",
        ' <points x1="5.0" y1="1.0" x2="10.0" y2="20.0" alt="door">door</points>',
    ]


def talk(*roles: str, **known: object) -> dict:
    row = {
        "id": "t1",
        "messages": [{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)],
        "source": "wildchat",
        "category": "other",
        "first_message_qwen3_tokens": 2304,
        "empty_messages": False,
        "has_special_token": False,
    }
    return {**row, **known}


def test_tulu_leaves_out_what_the_reference_leaves_out(tmp_path: Path) -> None:
    whole = ("system", "user", "assistant", "user", "assistant")
    rows = [
        talk(*whole),
        talk("user", "assistant", "user"),
        talk("assistant", "user"),
        talk("user", "user"),
        talk("user"),
        talk("system"),
        talk("user", "assistant", empty_messages=True),
        talk("user", "assistant", has_special_token=True),
        talk("user", "assistant", source="allenai/hardcoded-olmo"),
        talk("user", "assistant", source="allenai/puzzle_data_160k-ngram-filtered"),
        talk("user", "assistant", category="code"),
        talk("user", "assistant", category="non-english"),
        talk("user", "assistant", first_message_qwen3_tokens=2305),
        talk("user", "assistant", first_message_qwen3_tokens=4097),
    ]
    Hub(tmp_path / "tulu4_max_2304").parquet(rows)
    first, second = build(tmp_path, "tulu4_max_2304")
    assert first["images"] == [] and first["sizes"] == []
    assert first["annotations"] == [
        {
            "style": "text_sft",
            "messages": ["System: system 0\nuser 1", "assistant 2", "user 3", "assistant 4"],
        }
    ]
    assert second["annotations"][0]["messages"] == ["user 0", "assistant 1"]
    dropped: Counter = Counter()
    batches = [(number, [row]) for number, row in enumerate(rows)]
    kept = list(
        records(sources.get("tulu"), batches, "train", Cut(), lambda _: None, dropped, Counter())
    )
    assert len(kept) == 3  # one of 2305 tokens more
    assert dropped == {
        "turns that do not alternate": 3,
        "question without an answer": 1,
        "empty message": 1,
        "special token in a text": 1,
        "hard-coded answer": 1,
        "puzzle": 1,
        "code": 1,
        "other language than English": 1,
        "first message above 4096 tokens": 1,
    }
    with pytest.raises(texts.LeftOut, match="long reasoning"):
        long = "allenai/verifiable-reasoning-filtered-o4-mini-filtered"
        texts.tulu(talk("user", "assistant", source=long), "train", 4096)


def face() -> Image.Image:
    """A black disc of radius 40 on white, with a red mark at its right."""
    image = Image.new("RGB", (100, 100), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 10, 90, 90), fill="black")
    draw.rectangle((70, 46, 88, 54), fill="red")
    return image


def test_a_turned_face_lies_where_the_rotation_puts_it() -> None:
    turned = np.asarray(rotate(face(), 90, 1.0)).astype(int)
    red = np.argwhere((turned[..., 0] > 200) & (turned[..., 1] < 60))
    # clockwise by a right angle around (50, 50): the mark's middle (79.5, 50.5) comes to (49.5, 79.5)
    assert red.mean(0).tolist() == [79, 49]  # row and column of the pixel there
    small = np.asarray(rotate(face(), 0, 0.5)).astype(int)
    black = np.argwhere(small.max(2) < 60)
    assert abs(np.ptp(black[:, 0]) - 40) <= 2  # half of the diameter


def test_turned_clocks_are_drawn_from_their_seed() -> None:
    one = turn_clock(face(), 3)
    assert one.tobytes() == turn_clock(face(), 3).tobytes()
    sizes = {turn_clock(face(), seed).size for seed in range(12)}
    assert len(sizes) == 12
    stream = io.BytesIO()
    one.save(stream, "PNG")  # and can be kept
    blank = turn_clock(Image.new("L", (8, 8), 255), 0)
    assert np.asarray(blank).min() > 150


class Given:
    """Draws that are given, in place of random ones."""

    def __init__(self, draws: list) -> None:
        self.draws = list(draws)

    def random(self, *_: object) -> Any:
        return self.draws.pop(0)

    uniform = random

    def randint(self, *_: object) -> Any:
        return np.array(self.draws.pop(0))


@pytest.mark.parametrize(
    ("draws", "shape", "sums"),
    [
        (
            [0.551, 0.893, 142.67, 0.126, 0.445, 0.05, [0, 12], [7, 14]]
            + [0.0149, 0.9475, 1.0705, 1.0363],
            (57, 49, 3),
            [441206, 432717, 432526],
        ),
        (
            [0.873, 0.233, -78.18, 0.43, 0.582, 0.523, [13, 9], [61, 15]]
            + [-0.0202, 0.991, 1.127, 0.8085],
            (124, 70, 3),
            [1757056, 1744993, 1745733],
        ),
    ],
)
def test_a_clock_of_given_draws_is_the_references(
    draws: list, shape: tuple[int, ...], sums: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps by torchvision 0.20's functions: 60 random faces were equal to the bit."""
    monkeypatch.setattr(clocks, "RandomState", lambda seed: Given(draws))
    made = np.asarray(turn_clock(face(), 0)).astype(int)
    assert made.shape == shape
    assert made.sum((0, 1)).tolist() == sums


def test_angles_have_the_odds_of_the_reference() -> None:
    rng = np.random.RandomState(0)
    angles = np.abs([draw_angle(rng) for _ in range(20_000)])
    upright = 0.1
    slight = 0.4 + 0.5 * (0.2 + 0.4 * 25 / 80 + 0.4 * 25 / 180)
    wide = 0.5 * 0.4 * 100 / 180
    # deviations of the shares are at most sqrt(0.25 / 20000) = 0.0035
    assert abs((angles == 0).mean() - upright) < 0.014
    assert abs(((angles > 0) & (angles <= 25)).mean() - slight) < 0.014
    assert abs((angles > 80).mean() - wide) < 0.014
