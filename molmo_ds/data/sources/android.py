"""Android Control: the next action on a phone's screen, from a goal, from an instruction, or from both.

Layout: the gzip TFRecords of gs://gresearch/android_control as allenai/molmo's olmo/hf_datasets/android_control.py
reads them: one tf.train.Example per episode with goal, screenshots (PNG; one more than actions), their widths and
heights, actions (JSON), step_instructions and accessibility_trees; splits.json and test_subsplits.json list episodes.
The trees are AndroidAccessibilityForest messages (google-deepmind/android_env, android_env/proto/a11y).
"""

import gzip
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmo_ds.data.sources.source import Item, Picture, Row, Source, annotation, read_json

_WORDS = {"navigate_home": "Navigate Home", "navigate_back": "Navigate Back", "wait": "Wait"}


def android_control(row: Row, split: str) -> list[Item]:
    """One item per screenshot with an action. Training shows all four ways of asking; evaluation asks one by one."""
    items = []
    for step, (action, low) in enumerate(zip(row["actions"], row["step_instructions"])):
        size = row["screenshot_widths"][step], row["screenshot_heights"][step]
        done = action_text(json.loads(action), size)
        goal = row["goal"]
        asked = {
            "ll": annotation("android_control", question=f"low_level: {low}", answer=done),
            "hl_ll": annotation(
                "android_control", question=f"high_level: {goal} low_level: {low}", answer=done
            ),
            "hl": annotation("android_control", question=f"high_level: {goal}", answer=done),
            "hl_cot": annotation(
                "android_control",
                question=f"high_level_cot: {goal}",
                answer=f"Plan: {low} Action: {done}",
            ),
        }
        shown = (Picture(data=row["screenshots"][step]),)
        known = {"episode_id": row["episode_id"][0], "step": step, "target_action": done}
        if split != "train":
            known["target_box"] = target_box(
                json.loads(action), row["accessibility_trees"][step], size
            )
        if split == "train":
            items.append(Item(shown, list(asked.values()), known))
        else:
            items += [Item(shown, [one], {**known, "mode": mode}) for mode, one in asked.items()]
    return items


def action_text(action: dict[str, Any], size: tuple[int, int]) -> str:
    """An action in words; positions in percent of the screen's (width, height) with one decimal."""
    kind = action["action_type"]
    if kind in ("click", "long_press"):
        x = round(action["x"] / size[0] * 100, 1)
        y = round(action["y"] / size[1] * 100, 1)
        return f"{'Click' if kind == 'click' else 'Long Press'}({x}, {y})"
    if kind == "open_app":
        return f"Open App {action['app_name']}"
    if kind == "scroll":
        return f"Scroll {action['direction']}"
    if kind == "input_text":
        return f"Type {action['text']}"
    if kind not in _WORDS:
        raise ValueError(
            f"Android Control has an action '{kind}' that is not known; its layout has changed."
        )
    return _WORDS[kind]


def target_box(action: dict[str, Any], forest: bytes, size: tuple[int, int]) -> str:
    """Where a tap is right, [left, top, right, bottom] in percent with one decimal, as text; "" for other actions.

    It is the narrowest, then lowest, box of a visible element around the tap, else 10 pixels on each side. The
    reference also looks for the icon of an app that is to be opened, but finds it by a name in lower case only; here
    such an action has no box.
    """
    if action["action_type"] not in ("click", "long_press"):
        return ""
    x = action["x"]
    y = action["y"]
    around = [
        box
        for box in visible_boxes(forest, size)
        if box[0] <= x <= box[2] and box[1] <= y <= box[3]
    ]
    box = min(
        around,
        key=lambda box: (box[2] - box[0], box[3] - box[1]),
        default=(x - 10, y - 10, x + 10, y + 10),
    )
    return str([round(edge / size[i % 2] * 100, 1) for i, edge in enumerate(box)])


def visible_boxes(forest: bytes, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) in pixels of the visible elements of a screen, window by window.

    An edge that is 0 is not written: left and top are then 0, and right and bottom, as in the reference, the screen's.
    """
    boxes = []
    for _, window in _fields(forest):
        for tree in (value for number, value in _fields(window) if number == 11):
            for _, node in _fields(tree):
                known = dict(_fields(node))
                edges = dict(_fields(known.get(2, b"")))
                if known.get(23) and edges:
                    edges = {number: _signed(value) for number, value in edges.items()}
                    corner = edges.get(3, size[0]), edges.get(4, size[1])
                    boxes.append((edges.get(1, 0), edges.get(2, 0), *corner))
    return boxes


def read_android_control(folder: Path, split: str) -> Iterator[Row]:
    """Episodes of a split (test: its subsplit IDD) from android_control-*."""
    wanted = set(read_json(folder, "splits.json")[split])
    if split == "test":
        wanted &= set(read_json(folder, "test_subsplits.json")["IDD"])
    names = sorted(folder.glob("android_control-*"))
    if not names:
        raise FileNotFoundError(folder / "android_control-*")
    for name in names:
        with gzip.open(name) as file:
            while head := file.read(12):  # length and its checksum; gzip has checksums of its own
                length = struct.unpack("<Q", head[:8])[0]
                row = parse_example(file.read(length + 4)[:length])
                if row["episode_id"][0] in wanted:
                    decode = ("actions", "step_instructions")
                    yield {
                        **row,
                        "goal": row["goal"][0].decode(),
                        **{k: [v.decode() for v in row[k]] for k in decode},
                    }


def parse_example(data: bytes) -> dict[str, list]:
    """The bytes and integer features of a serialised tf.train.Example (floats are left out)."""
    features = {}
    for _, entries in _fields(data):  # Example.features
        for _, entry in _fields(entries):  # Features.feature: a map, so (1, key) and (2, value)
            pair = dict(_fields(entry))
            for kind, values in _fields(pair[2]):
                if kind == 1:  # BytesList
                    features[pair[1].decode()] = [value for _, value in _fields(values)]
                elif kind == 3:  # Int64List, packed or not
                    found = [
                        [v] if isinstance(v, int) else list(_varints(v)) for _, v in _fields(values)
                    ]
                    features[pair[1].decode()] = [number for numbers in found for number in numbers]
    return features


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protobuf message: integers for varints, bytes for the rest."""
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        value, position = _varint(data, position) if tag & 7 in (0, 2) else (0, position)
        if tag & 7 == 2:
            value, position = data[position : position + value], position + value
        elif tag & 7 in (1, 5):
            width = 8 if tag & 7 == 1 else 4
            value = data[position : position + width]
            position = position + width
        yield tag >> 3, value


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value = value | (byte & 127) << shift
        shift = shift + 7
        position = position + 1
        if byte < 128:
            return value, position


def _signed(value: int) -> int:
    """An int32 of a varint, which holds negative numbers as unsigned 64-bit ones."""
    return value - (1 << 64) if value >> 63 else value


def _varints(data: bytes) -> Iterator[int]:
    position = 0
    while position < len(data):
        value, position = _varint(data, position)
        yield value


SOURCES = [
    Source(
        *(
            "android_control",
            "Apache-2.0",
            "allenai/molmo, olmo/hf_datasets/android_control.py",
            android_control,
        ),
        read=read_android_control,
        by_hand="copy https://console.cloud.google.com/storage/browser/gresearch/android_control into DIR: 20 files"
        " android_control-000NN-of-00020, splits.json and test_subsplits.json",
    ),
]
