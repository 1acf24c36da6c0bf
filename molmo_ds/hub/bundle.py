"""Model code for an exported folder, made from the package's own source files by rewriting their imports.

transformers loads a folder's code only if all files lie side by side and import each other relatively, and it refuses
files that import what is not installed. So `molmo_ds.model.vision` becomes `ds_model_vision.py`, packages other than
torch, numpy, Pillow and transformers are imported if they are there, and of the ops only plain torch stays.
"""

import ast
import importlib.util
import re
import sys
from pathlib import Path

REMOTE = "molmo_ds.hub.remote."
ROOTS = ("config_molmo", "modeling_molmo", "image_preprocessing_molmo", "preprocessing_molmo")
INSTEAD = {"pydantic.dataclasses": "dataclasses"}  # an exported folder checks no settings
KNOWN = {"torch", "numpy", "PIL", "transformers", "tokenizers", *sys.stdlib_module_names}


def bundle() -> dict[str, str]:
    """File name -> source of every file that an exported folder needs, and no other."""
    files, waiting = {}, [REMOTE + root for root in ROOTS]
    while waiting:
        module = waiting.pop()
        name = file_of(module) + ".py"
        if name not in files:
            files[name], needed = rewrite(source_of(module), module)
            waiting += needed
    return files


def rewrite(source: str, module: str) -> tuple[str, list[str]]:
    """The source with its imports rewritten, and the modules of the package that it imports."""
    tree, lines, needed = ast.parse(source), source.splitlines(), []
    cuts = [(node.lineno - len(_decorators(node)), node.end_lineno, []) for node in _fast(tree)]
    gone = {line for start, end, _ in cuts for line in range(start, end + 1)}
    used = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and n.lineno not in gone}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and node.lineno not in gone:
            text, modules = _imports(node, used)
            needed += modules
            if text is not None:
                cuts.append((node.lineno, node.end_lineno, [" " * node.col_offset + line for line in text]))
    for start, end, text in sorted(cuts, reverse=True):
        lines[start - 1 : end] = text
    origin = f"# Made from {module.replace('.', '/')}.py by molmo_ds/hub/bundle.py: change it there.\n"
    return origin + re.sub(r"\n{4,}", "\n\n\n", "\n".join(lines)).strip() + "\n", needed


def file_of(module: str) -> str:
    """Name of a module's file in the folder, without .py."""
    return (
        module.removeprefix(REMOTE) if module.startswith(REMOTE) else "ds_" + module.split(".", 1)[1].replace(".", "_")
    )


def source_of(module: str) -> str:
    """A module's source."""
    return Path(importlib.util.find_spec(module).origin).read_text()


def _imports(node: ast.Import | ast.ImportFrom, used: set[str]) -> tuple[list[str] | None, list[str]]:
    """New lines (None to keep the old) and the package's modules among what is imported and used."""
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "molmo_ds":
        text, modules = [], []
        for alias in node.names:
            if (alias.asname or alias.name) not in used:  # only kernels wanted it
                continue
            whole = f"{node.module}.{alias.name}"
            is_module = importlib.util.find_spec(node.module).submodule_search_locations is not None
            modules.append(whole if is_module else node.module)
            name = alias.asname or alias.name
            if is_module:  # transformers finds a file only by the words "from .FILE import"
                text += [f"from .{file_of(whole)} import __name__ as _", f"from . import {file_of(whole)} as {name}"]
            else:
                text.append(f"from .{file_of(node.module)} import {alias.name}" + f" as {name}" * (name != alias.name))
        return text or ["pass"] * (node.col_offset > 0), modules
    package = node.names[0].name if isinstance(node, ast.Import) else node.module
    if package in INSTEAD:
        return [f"from {INSTEAD[package]} import {', '.join(alias.name for alias in node.names)}"], []
    if package.split(".")[0] in KNOWN:
        return None, []
    names = [alias.asname or alias.name.split(".")[0] for alias in node.names]
    return [
        "try:",
        f"    {ast.unparse(node)}",
        "except ImportError:  # an exported folder does without",
        *(f"    {name} = Exception" for name in names),
    ], []


def _fast(tree: ast.Module) -> list[ast.stmt]:
    """The top-level statements that belong to kernels: all versions of an op but "torch", and what registers them."""
    gone: list[ast.stmt] = []
    names: set[str] = set()
    for node in tree.body:
        words = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        words |= {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute)}
        imported = {a.name for n in ast.walk(node) if isinstance(n, ast.ImportFrom) for a in n.names}
        runs = {n.id for d in _decorators(node) for n in ast.walk(d) if isinstance(n, ast.Name)}
        runs |= words if isinstance(node, ast.Expr) else set()
        other = any(
            isinstance(d, ast.Call)
            and ast.unparse(d.func).endswith("implements")
            and ast.literal_eval(d.args[1]) != "torch"
            for d in _decorators(node)
        )
        if other or "custom_op" in words or "triton_kernels" in imported or runs & names:
            gone.append(node)
            names |= {node.name} if isinstance(node, ast.FunctionDef | ast.ClassDef) else set()
    return gone


def _decorators(node: ast.stmt) -> list[ast.expr]:
    return getattr(node, "decorator_list", [])
