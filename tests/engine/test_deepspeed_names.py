"""The private names of DeepSpeed: in one file, all in its list, and all in the version that is installed."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from molmo_ds.engine.deepspeed_names import NAMES

ROOT = Path(__file__).parents[2]
HOLDER = ROOT / "molmo_ds/engine/deepspeed_0_19.py"
PUBLIC = {  # words of the list that other things have as well
    "group_name",
    "module",
    "offload_optimizer",
    "parts",
}
OTHERS = {  # of Python, torch and accelerate
    "_asdict",
    "_cdata",
    "_dynamo",
    "_exit",
    "_field_defaults",
    "_fields",
    "_foreach_mul_",
    "_foreach_norm",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_get_default_store",
    "_inductor",
    "_make",
    "_replace",
    "_reset_state",
    "_sequence_nr",
    "_subclasses",
}
EVERY = {name for names in NAMES.values() for name in names.split()}


def defined(tree: ast.AST) -> set[str]:
    """Functions, classes, and whatever is set: names, attributes of any object."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.If) and ast.unparse(node).startswith(
            "if name == '__compatible_ops__'"
        ):
            found.add("__compatible_ops__")  # made when it is first read
    return found


def used(tree: ast.AST) -> Iterator[str]:
    """Attributes of anything but self, as they stand or as the text that getattr and the like are given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id == "self"
        ):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
            "getattr",
            "hasattr",
            "setattr",
        ):
            yield from (
                a.value
                for a in node.args
                if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


@pytest.mark.parametrize("module", NAMES)
def test_the_installed_version_has_them(module: str) -> None:
    spec = importlib.util.find_spec(module)
    assert spec is not None, f"DeepSpeed {version('deepspeed')} has no {module}"
    vanished = set(NAMES[module].split()) - defined(ast.parse(Path(spec.origin).read_text()))
    assert not vanished, (
        f"{sorted(vanished)} vanished from {module} in DeepSpeed {version('deepspeed')}"
    )


def test_a_name_that_vanished_is_missed() -> None:
    assert defined(ast.parse("class A:\n  def f(self):\n    self._x = x.y = 1\n  z: int = 2")) == {
        "A",
        "f",
        "_x",
        "y",
        "z",
    }


def test_the_list_is_whole() -> None:
    text = HOLDER.read_text()
    tree = ast.parse(text)
    touched = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} | set(
        used(tree)
    )
    private = {name for name in touched if name.startswith(("_", "ds_"))} - {"__init__"}
    ours = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    ours.add("__compatible_ops__")
    assert private - ours - OTHERS <= EVERY, "used and not listed"
    functions = text[text.index("\nMODEL_STEP") :]  # what stands after the imports
    unused = {name for name in EVERY if not re.search(rf"\b{name}\b", functions)}
    assert not unused, "listed and not used"


def test_no_other_file_touches_them() -> None:
    for path in (ROOT / "molmo_ds").rglob("*.py"):
        if path == HOLDER:
            continue
        names = set(used(ast.parse(path.read_text())))
        assert not names & (EVERY - PUBLIC), path
        if path.is_relative_to(ROOT / "molmo_ds/engine"):
            hidden = {name for name in names if re.match(r"_[a-z]", name)}
            assert hidden <= OTHERS, path


def test_the_package_asks_for_this_version() -> None:
    assert "deepspeed>=0.19.8,<0.20" in (ROOT / "setup.cfg").read_text()
    assert HOLDER.stem.endswith("_" + "_".join(version("deepspeed").split(".")[:2]))
