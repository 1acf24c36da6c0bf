"""Each exchange of Python objects between ranks is in a table of docs/evidence/many-ranks.md, and none is in a step."""

import ast
from collections.abc import Iterator

from molmo_ds.testing.tables import ROOT, read

OBJECTS = {"all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list"}
OF_WORLD = {"gather", "broadcast", "agree", "together"}


def exchanges(tree: ast.Module) -> Iterator[str]:
    """Names of the functions, with their classes, that exchange objects."""
    inside: dict[ast.AST, str] = {}
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            named = isinstance(child, ast.FunctionDef | ast.ClassDef)
            outer = inside.get(parent, "")
            inside[child] = f"{outer}.{child.name}".lstrip(".") if named else outer
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        of_world = node.func.attr in OF_WORLD and owner.rpartition(".")[2] == "world"
        if of_world or node.func.attr in OBJECTS:
            yield inside[node]


def test_the_table_names_every_exchange_of_objects() -> None:
    found = set()
    for path in sorted((ROOT / "molmo_ds").rglob("*.py")):
        if "testing" not in path.parts:
            name = path.relative_to(ROOT / "molmo_ds").as_posix()
            found |= {f"`{name}` {where}" for where in exchanges(ast.parse(path.read_text()))}
    table = read("exchanges of objects")
    assert {row[0] for row in table} == found
    assert not [row for row in table if row[1].startswith("step")]


def test_an_exchange_is_found() -> None:
    source = (
        "class A:\n def f(self):\n  if self.world.gather(1): pass\ndef g(): dist.gather_object(2)"
    )
    assert sorted(exchanges(ast.parse(source))) == ["A.f", "g"]
