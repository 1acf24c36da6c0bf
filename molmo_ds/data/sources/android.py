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

from molmo_ds.data.sources.protobuf import fields, parse_example, signed
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

    Of a tap it is the narrowest, then lowest, box of a visible element around it, else 10 pixels on each side; of an
    app that is to be opened, the box of its icon.
    """
    kind = action["action_type"]
    if kind == "open_app":
        box = app_box(action["app_name"], forest)
        return _in_percent(box, size) if box else ""
    if kind not in ("click", "long_press"):
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
    return _in_percent(box, size)


def _in_percent(box: tuple[int, int, int, int], size: tuple[int, int]) -> str:
    return str([round(edge / size[i % 2] * 100, 1) for i, edge in enumerate(box)])


def app_box(name: str, forest: bytes) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) in pixels of the first visible element whose text begins with an app's name.

    As in the reference (android_control_utils.py) the text is taken in small letters and the name as it is, so that a
    name with a capital has no box; of the elements of one window that say the same only the first is looked at; and
    elements are looked through package by package.
    """
    packages: dict[bytes, list[dict[int, Any]]] = {}
    for tree in _trees(forest):
        seen = set()
        for _, node in fields(tree):
            known = dict(fields(node))
            text = known.get(7, b"")
            if text not in seen and known.get(23):
                packages.setdefault(known.get(6, b""), []).append(known)
            seen.add(text)
    for known in (one for elements in packages.values() for one in elements):
        edges = {number: signed(value) for number, value in fields(known.get(2, b""))}
        left = edges.get(1, 0)
        top = edges.get(2, 0)
        width = edges.get(3, 0) - left
        height = edges.get(4, 0) - top
        middle = (int(left + width / 2), int(top + height / 2))
        if min(*middle, width, height) >= 0 and _says(known).startswith(name):
            half = (width // 2, height // 2)
            return (
                middle[0] - half[0],
                middle[1] - half[1],
                middle[0] + half[0],
                middle[1] + half[1],
            )
    return None


def _says(known: dict[int, Any]) -> str:
    """What the reference calls the text of an element, in small letters: its text; Switch for a nameless switch."""
    if known.get(7):
        return known[7].decode().lower()
    nameless_switch = not known.get(10) and b"Switch" in known.get(3, b"")
    return "switch" if nameless_switch else ""


def _trees(forest: bytes) -> Iterator[bytes]:
    for _, window in fields(forest):
        yield from (value for number, value in fields(window) if number == 11)


def visible_boxes(forest: bytes, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) in pixels of the visible elements of a screen, window by window.

    An edge that is 0 is not written: left and top are then 0, and right and bottom, as in the reference, the screen's.
    """
    boxes = []
    for tree in _trees(forest):
        for _, node in fields(tree):
            known = dict(fields(node))
            edges = {number: signed(value) for number, value in fields(known.get(2, b""))}
            if known.get(23) and edges:
                corner = (edges.get(3, size[0]), edges.get(4, size[1]))
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


SOURCES = [
    Source(
        "android_control",
        "Apache-2.0",
        "allenai/molmo, olmo/hf_datasets/android_control.py",
        android_control,
        read=read_android_control,
        by_hand="copy https://console.cloud.google.com/storage/browser/gresearch/android_control into DIR: 20 files"
        " android_control-000NN-of-00020, splits.json and test_subsplits.json",
    ),
]
