"""Model code for an exported folder, made from the package's own source files by rewriting their imports.

transformers loads a folder's code only if all files lie side by side and import each other relatively, and it refuses
files that import what is not installed. So `molmo_ds.model.vision` becomes `ds_model_vision.py`, an op becomes its
`reference.py`, and packages other than torch, numpy, Pillow and transformers are imported if they are installed.

Before 5.10 transformers copies only the files that a root imports itself, and 4.46 looks for imports without an end
where files import each other in a circle: each root names every file that it needs, and a circle is an error here.
"""

import ast
import importlib.util
import sys
from pathlib import Path

REMOTE = "molmo_ds.hub.remote."
OPS = "molmo_ds.ops"
ROOTS = ("config_molmo", "modeling_molmo", "image_preprocessing_molmo", "preprocessing_molmo")
INSTEAD = {"pydantic.dataclasses": "dataclasses"}  # an exported folder checks no settings
KNOWN = {"torch", "numpy", "PIL", "transformers", "tokenizers", *sys.stdlib_module_names}


def bundle() -> dict[str, str]:
    """File name -> source of every file that an exported folder needs, and no other."""
    sources: dict[str, str] = {}
    imports: dict[str, list[str]] = {}  # file -> the files that it imports
    waiting = [REMOTE + root for root in ROOTS]
    while waiting:
        module = waiting.pop()
        name = file_of(module)
        if name not in sources:
            sources[name], needed = rewrite(module)
            imports[name] = [file_of(other) for other in needed]
            waiting += needed
    for root in ROOTS:
        sources[root] += _naming(reached(root, imports))
    return {f"{name}.py": source for name, source in sources.items()}


def reached(file: str, imports: dict[str, list[str]], above: tuple[str, ...] = ()) -> set[str]:
    """All files that a file imports, directly or not."""
    assert file not in above, f"files import each other in a circle: {' -> '.join((*above, file))}"
    below = [{other} | reached(other, imports, (*above, file)) for other in imports[file]]
    return set().union(*below)


def _naming(files: set[str]) -> str:
    """A function that is never called: only its text is read, by versions of transformers before 5.10."""
    lines = [f"    from .{file} import __name__ as _" for file in sorted(files)]
    return "\n\n".join(("", "\n".join(("def _files():  # for older transformers", *lines)))) + "\n"


def rewrite(module: str) -> tuple[str, list[str]]:
    """A module's source with its imports rewritten, and the modules of the package that it imports."""
    path = Path(importlib.util.find_spec(source_of(module)).origin)
    source = path.read_text()
    lines = source.splitlines()
    needed: list[str] = []
    nodes = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    for node in sorted(nodes, key=lambda node: node.lineno, reverse=True):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "molmo_ds":
            text, modules = _from_package(node)
            needed += modules
        else:
            text = _from_elsewhere(node)
        if text is not None:
            lines[node.lineno - 1 : node.end_lineno] = [
                " " * node.col_offset + line for line in text
            ]
    origin = f"# Made from {source_of(module).replace('.', '/')}.py by molmo_ds/hub/bundle.py: change it there.\n"
    return origin + "\n".join(lines).strip() + "\n", needed


def source_of(module: str) -> str:
    """The module whose source goes into the folder: of an op its reference."""
    return f"{module}.reference" if module.rpartition(".")[0] == OPS else module


def file_of(module: str) -> str:
    """Name of a module's file in the folder, without .py."""
    if module.startswith(REMOTE):
        return module.removeprefix(REMOTE)
    return "ds_" + module.split(".", 1)[1].replace(".", "_")


def _from_package(node: ast.ImportFrom) -> tuple[list[str], list[str]]:
    """New lines for an import from the package, and the modules that it names."""
    text = []
    modules = []
    for alias in node.names:
        name = alias.asname or alias.name
        # transformers finds a file only by "from .FILE import"
        if _is_module(f"{node.module}.{alias.name}"):
            modules.append(f"{node.module}.{alias.name}")
            file = file_of(modules[-1])
            text.append(f"from .{file} import __name__ as _")
            text.append(f"from . import {file} as {name}")
        else:
            modules.append(node.module)
            renamed = f" as {name}" if name != alias.name else ""
            text.append(f"from .{file_of(node.module)} import {alias.name}{renamed}")
    return text, modules


def _is_module(name: str) -> bool:
    """Whether a package holds a module of that name, rather than another name."""
    package = name.rpartition(".")[0]
    holds_modules = importlib.util.find_spec(package).submodule_search_locations is not None
    return holds_modules and importlib.util.find_spec(name) is not None


def _from_elsewhere(node: ast.Import | ast.ImportFrom) -> list[str] | None:
    """New lines for an import from another package; None to keep the old."""
    package = node.names[0].name if isinstance(node, ast.Import) else node.module
    if package in INSTEAD:
        return [f"from {INSTEAD[package]} import {', '.join(alias.name for alias in node.names)}"]
    if package.split(".")[0] in KNOWN:
        return None
    names = [alias.asname or alias.name.split(".")[0] for alias in node.names]
    return [
        "try:",
        f"    {ast.unparse(node)}",
        "except ImportError:  # an exported folder does without",
        *(f"    {name} = Exception" for name in names),
    ]
