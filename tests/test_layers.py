"""Imports run one way: a package imports only what stands strictly left of it in the house."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "molmo_ds"
LAYERS = [
    [
        "architecture",
        "config",
        "presets",
        "rules",
        "setting_list",
        "settings",
        "block",
        "batch",
        "files",
        "environment",
        "unread",
    ],
    ["stores"],
    ["ops"],
    ["data", "model"],
    ["weights"],
    ["engine"],
    ["infer", "monitor"],
    ["eval", "hub"],
    ["train", "serve"],
    ["rehearse", "show"],
    ["cli"],
    ["testing"],
]
RANK = {name: i for i, row in enumerate(LAYERS) for name in row}
ONLY_IN = {  # testing forks after the imports are made, and resets what DeepSpeed keeps in globals
    "deepspeed": ("engine", "testing"),
    "accelerate": ("engine", "testing"),
    "triton": ("ops", "testing"),
    "flash_attn": ("ops",),
    "omegaconf": ("settings",),
}
FOUNDATION = {  # one layer, whose files use each other in this order
    "architecture": set(),
    "config": {"architecture"},
    "block": set(),
    "batch": {"block"},
    "environment": {"config"},
    "files": {"config", "environment"},
    "presets": {"architecture"},
    "rules": {"architecture", "config"},
    "setting_list": set(),
    "settings": {"architecture", "config", "files", "presets", "rules", "setting_list"},
    "unread": {"config"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_run_one_way() -> None:
    files = list(PACKAGE.rglob("*.py"))
    assert len(files) > 10
    for path in files:
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for name in imports(path):
            top, _, rest = name.partition(".")
            assert top not in ("tools", "examples", "tests"), f"{path} imports {name}"
            assert here in ONLY_IN.get(top, (here,)), (
                f"{path}: only molmo_ds.{ONLY_IN[top][0]} imports {top}"
            )
            if top == "molmo_ds" and rest and here != "__init__":
                there = rest.split(".")[0]
                allowed = (
                    there == here
                    or RANK[there] < RANK[here]
                    or there in FOUNDATION.get(here, set())
                )
                assert allowed, f"{path} may not import {name}"


def test_files_and_folders_stay_short() -> None:
    """A folder's own files can be read in a day, and a file at a sitting."""
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {str(path): count for path, count in lines.items() if count > 400} == {}
    folders = Counter[str]()
    for path, count in lines.items():
        folders[str(path.parent)] += count
    assert {folder: count for folder, count in folders.items() if count > 3000} == {}


def test_kinds_of_parallelism_do_not_know_each_other() -> None:
    """So that a pair of them is a list of two."""
    folder = PACKAGE / "engine/parallel"
    kinds = {path.stem for path in folder.glob("*.py")} - {"__init__", "part"}
    assert kinds == {"expert", "nvme", "sequence", "tensor", "zero"}
    for kind in kinds:
        named = {
            name.removeprefix("molmo_ds.engine.parallel.").split(".")[0]
            for name in imports(folder / f"{kind}.py")
        }
        assert not named & (kinds - {kind}), kind


def test_tests_and_measurements_meet_in_testing() -> None:
    scripts = {
        folder: {path.stem for path in (ROOT / folder).rglob("*.py")}
        for folder in ("tests", "tools", "examples")
    }
    assert len(scripts["tests"]) > 80 and len(scripts["tools"]) > 15
    for folder, names in scripts.items():
        others = {
            name for other, found in scripts.items() if other != folder for name in found
        } - names
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            assert "sys" + ".path" not in text, f"{path} edits the path of modules"
            tops = {name.partition(".")[0] for name in imports(path)}
            assert not tops & (others | {"tools", "examples", "tests"}), (
                f"{path} imports {tops & others}"
            )


def test_testing_needs_no_pytest() -> None:
    for path in (PACKAGE / "testing").rglob("*.py"):
        assert not any(name.split(".")[0] in ("pytest", "hypothesis") for name in imports(path)), (
            path
        )
