"""The parts of the docs that are made from the code when the site is built: `<!-- generated: NAME -->` in a page.

python docs/generate.py NAME prints one of them, where molmo_ds is installed (pip install -e .). It imports the settings
and the benchmarks, and reads all else as text, so that torch and DeepSpeed need not be there.
"""

import ast
import json
import re
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from molmo_ds import setting_list
from molmo_ds.config import RunConfig

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.M)
FOLDERS = ("tools", "tools/bench")  # of the commands, in the order of the page
COLUMNS = ("file", "engine", "ZeRO", "sizes", "offload")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for each page."""
    return MARK.sub(lambda mark: PARTS[mark[1]](), markdown)


def settings() -> str:
    """A table for each block of settings: name, default, what it may be, the comment on its field."""
    blocks: dict[str, list[setting_list.Setting]] = {}
    for setting in setting_list.settings(RunConfig):
        blocks.setdefault(setting.name.rpartition(".")[0], []).append(setting)
    lines: list[str] = []
    for block, rows in blocks.items():
        lines += ["", f"## {block.replace('<', '&lt;') or 'The run'}", ""]
        lines += ["| setting | default | what it may be | meaning |", "|---|---|---|---|"]
        for setting in rows:
            name = setting.name.removeprefix(f"{block}.")
            cells = [
                f"`{name}`",
                f"`{_shown(setting.default)}`",
                setting_list.legal(setting.hint),
                setting.comment,
            ]
            lines.append(_row(cells))
    return "\n".join(lines)


def commands() -> str:
    """Of each command its description and its options."""
    lines: list[str] = []
    for name, (text, options) in described().items():
        lines += ["", f"## {name}", "", "```text", text.strip(), "```", ""]
        if options:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [_row([f"`{words}`", meaning]) for words, meaning in options.items()]
    return "\n".join(lines)


def described() -> dict[str, tuple[str, dict[str, str]]]:
    """Command -> its docstring, and of each argument what is said of it."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).glob("*.py")):
            tree, options = _read_command(path)
            if not options and "__main__" not in path.read_text():
                continue
            found[f"{folder}/{path.name}"] = (ast.get_docstring(tree) or "", options)
    return found


def strategies() -> str:
    """A table of ds_configs, then each file and those of ds_configs/infer."""
    files = sorted((ROOT / "ds_configs").glob("*.json"))
    lines = [_row(COLUMNS), "|---|---|---|---|---|"]
    for path in files:
        lines.append(_row(_strategy_cells(path)))
    for path in [*files, *sorted((ROOT / "ds_configs/infer").glob("*.json"))]:
        lines += ["", f'??? note "{path.relative_to(ROOT / "ds_configs")}"', "", "    ```json"]
        lines += [f"    {line}" for line in path.read_text().splitlines()]
        lines.append("    ```")
    return "\n".join(lines)


def benchmarks() -> str:
    """Every task of an evaluation."""
    from molmo_ds.eval.benchmarks import BENCHMARKS

    heads = (
        "task",
        "benchmark",
        "splits (questions)",
        "styles",
        "new tokens",
        "crops",
        "headline",
        "published",
    )
    lines = [_row(heads), "|---" * len(heads) + "|"]
    for task in BENCHMARKS.values():
        splits = [
            f"{name} ({split.questions or '?'}{'' if split.public else ', no public answers'})"
            for name, split in task.splits.items()
        ]
        published = ""
        if task.published:
            figures = " / ".join(
                "-" if value is None else str(value) for value in task.published.figures
            )
            published = f"{task.published.split}: {figures}"
        names = ", ".join(f"`{name}`" for name in (task.name, *task.aliases))
        cells = [names, task.benchmark, ", ".join(splits) or "any shards", ", ".join(task.styles)]
        lines.append(
            _row([*cells, task.tokens_shown, task.crops or "own", f"`{task.headline}`", published])
        )
    return "\n".join(lines)


def sets() -> str:
    """The sets of an evaluation and their tasks."""
    from molmo_ds.eval.set_table import SETS

    lines = ["| set | tasks |", "|---|---|"]
    lines += [_row([f"`{name}`", ", ".join(tasks) or "none yet"]) for name, tasks in SETS.items()]
    return "\n".join(lines)


def refusals() -> str:
    """The table of engine/strategy/refusals.py: what cannot run, and what is said then; values stand in brackets."""
    lines = ["| what | sentence |", "|---|---|"]
    tree = ast.parse((ROOT / "molmo_ds/engine/strategy/refusals.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Row":
            name, _, sentence = node.args
            lines.append(_row([ast.literal_eval(name), _sentence(sentence)]))
    return "\n".join(lines)


def tree() -> str:
    """Every file of the package with the first sentence of its docstring."""
    lines: list[str] = []
    package = ROOT / "molmo_ds"
    folders = [package, *sorted(path for path in package.rglob("*") if path.is_dir())]
    for folder in folders:
        files = sorted(path for path in folder.glob("*.py") if path.name != "__init__.py")
        init = folder / "__init__.py"
        if not init.exists():
            continue
        lines += ["", f"### {folder.relative_to(ROOT)}/", "", _first_sentence(init), ""]
        if files:
            lines += ["| file | what it is |", "|---|---|"]
        lines += [_row([f"`{path.name}`", _first_sentence(path)]) for path in files]
    return "\n".join(lines)


def layers() -> str:
    """The import order that tests/test_layers.py enforces."""
    path = ROOT / "tests/test_layers.py"
    for node in ast.parse(path.read_text()).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "LAYERS"
        ):
            rows = ast.literal_eval(node.value)
            return "```text\n" + "\n<- ".join(" | ".join(row) for row in rows) + "\n```"
    raise ValueError(f"{path} has no LAYERS, of which the page of the architecture is made.")


def _read_command(path: Path) -> tuple[ast.Module, dict[str, str]]:
    """The file that holds a command, and its arguments: a thin tool names a file of molmo_ds/cli."""
    text = path.read_text()
    named = re.search(r'^ +run\("(\w+)"\)$', text, re.M)
    if named:
        path = ROOT / "molmo_ds/cli" / f"{named[1]}.py"
        text = path.read_text()
    module = ast.parse(text)
    options = dict(_arguments(module))
    for helper in path.parent.glob(f"{path.stem}_*.py"):  # options that are a file of their own
        options |= dict(_arguments(ast.parse(helper.read_text())))
    return module, options


def _arguments(module: ast.Module) -> Iterator[tuple[str, str]]:
    calls = [node for node in ast.walk(module) if isinstance(node, ast.Call)]
    calls = [
        node
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"
    ]
    for call in sorted(calls, key=lambda node: node.lineno):
        words = [word.value for word in call.args if isinstance(word, ast.Constant)]
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        said = [_text(given["help"])] if "help" in given else []
        if isinstance(given.get("choices"), ast.List):
            said.append(
                "one of " + ", ".join(str(choice) for choice in ast.literal_eval(given["choices"]))
            )
        default = given.get("default")
        if (
            isinstance(default, ast.Constant)
            and default.value not in (None, "")
            and "default" not in "".join(said)
        ):
            said.append(f"default {default.value}")
        if words:
            yield ", ".join(words), "; ".join(said)


def _text(node: ast.expr) -> str:
    """A help text; what an f-string fills in is left as it is written."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return f"{{{ast.unparse(node.value)}}}"
    return ast.unparse(node)


def _strategy_cells(path: Path) -> list[str]:
    values = json.loads(path.read_text())
    ours = values.get("molmo_ds", {})
    zero = values.get("zero_optimization", {})
    sizes = {key: ours[key] for key in ours if key != "engine"}
    sizes |= values.get("tensor_parallel", {})
    sizes |= {
        key: size for key, size in values.get("expert_parallel", {}).items() if key != "enabled"
    }
    sizes |= {key: zero[key] for key in ("zero_hpz_partition_size",) if key in zero}
    offload = {
        key: zero[key]["device"] for key in ("offload_param", "offload_optimizer") if key in zero
    }
    return [
        f"`{path.name}`",
        ours.get("engine", "zero"),
        str(zero.get("stage", 0)),
        ", ".join(f"{key}={size}" for key, size in sizes.items()),
        ", ".join(f"{key}: {device}" for key, device in offload.items()),
    ]


def _sentence(node: ast.expr) -> str:
    """A sentence of a refusal; one that others raise as well is a name of engine/strategy, filled in by a call."""
    if isinstance(node, ast.Call):
        name = node
        while isinstance(name, ast.Call | ast.Attribute):
            name = name.func if isinstance(name, ast.Call) else name.value
        for other in ast.parse((ROOT / "molmo_ds/engine/strategy/__init__.py").read_text()).body:
            if isinstance(other, ast.Assign) and ast.unparse(other.targets[0]) == name.id:
                node = other.value
    text = ast.literal_eval(node).removeprefix("{path}: ").replace("{path}", "the file")
    parts = []
    for before, field, _, _ in string.Formatter().parse(text):
        parts.append(before)
        if field:
            parts.append(f"[{field.rpartition('.')[2]}]")
    return "".join(parts)


def _first_sentence(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text())) or ""
    paragraph = " ".join(said.partition("\n\n")[0].split())
    return re.split(r"(?<=[.]) (?=[A-Z])", paragraph)[0].replace("<", "&lt;")


def _shown(value: Any) -> str:
    """A default as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return json.dumps(list(value))
    return json.dumps(value) if value == "" else str(value)


def _row(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


PARTS = {
    "settings": settings,
    "commands": commands,
    "strategies": strategies,
    "benchmarks": benchmarks,
    "sets": sets,
    "refusals": refusals,
    "tree": tree,
    "layers": layers,
}

if __name__ == "__main__":
    if sys.argv[1:] not in [[name] for name in PARTS]:
        sys.exit(f"generate: name one of {', '.join(PARTS)}.")
    print(PARTS[sys.argv[1]]())
