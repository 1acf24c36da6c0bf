"""Exported folders in transformers, from 4.46 to the installed version: usual_calls.py, call by call."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
import transformers
from environments import PINS, clean, transformers_at
from exported import LIKE_OTHERS, Exported, config_of, export, picture
from usual_calls import CALLS

from molmo_ds.hub.bundle import ROOTS, bundle
from molmo_ds.testing.random_weights import random_state

HERE = Path(__file__).parent
SCRIPT = HERE / "usual_calls.py"
TABLE = HERE.parents[1] / "docs/guides/tools.md"
OTHERS = ("peft", "accelerate", "TRL", "VLMEvalKit", "lmms-eval", "mypy", "Megatron-Energon")
OTHERS += ("img2dataset", "vLLM", "openai")
INSTALLED = "installed"
FAMILIES = ("qwen2", "olmo2", "olmoe")
# one process makes all these calls in every run of the suite; --all makes all calls, and in each version
FEW = (
    "config_and_tokenizer",
    "one_token_a_step",
    "greedy",
    "beams",
    "automodels",
    "pipeline",
    "two_steps",
    "openai_parts",
    "arguments",
    "image_processor",
    "image_labels",
    "embeddings",
    "resizing",
    "gradient_checkpointing",
    "hidden_states",
    "own_shards",
    "dispatch",
    "lora",
    "vlmevalkit",
    "lmms_eval",
    "typed_words",
    "trainer",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("interop")


def made(root: Path, kind: str) -> Exported:
    """The export of a family, and WANT.pt next to it."""
    config = config_of(kind)
    found = export(root, config, random_state(config, len(kind)))
    torch.save(found.answers(picture()), root / f"want_{kind}.pt")
    return found


def said(root: Path, version: str, kind: str, *calls: str) -> dict[str, str]:
    """What failed in each call."""
    if not (root / kind).is_dir():
        made(root, kind)
    out = root / f"said-{version}-{kind}.json"
    there = {} if version == INSTALLED else {"PYTHONPATH": str(transformers_at(version))}
    words = [str(root / kind), str(root / f"want_{kind}.pt"), str(out), *calls]
    environment = clean(HF_MODULES_CACHE=str(root / f"modules-{version}"), **there)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *words],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        timeout=1500,  # on a busy machine; 40 s of one core
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(out.read_text())
    assert found.pop("transformers") == version or version == INSTALLED
    return found


def test_the_installed_version(root: Path) -> None:
    found = said(root, INSTALLED, "olmo2", *FEW)
    assert set(found) == set(FEW)
    assert {name: what for name, what in found.items() if what} == {}


@pytest.mark.everything
@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("version", [INSTALLED, *PINS])
def test_versions(root: Path, version: str, kind: str) -> None:
    found = said(root, version, kind)
    assert set(found) == set(CALLS)
    assert {name: what for name, what in found.items() if what} == {}


def test_the_versions_that_people_are_told() -> None:
    """The model card and the docs name the same ones, all of which test_versions runs."""
    card = files("molmo_ds.hub.remote").joinpath("README.md").read_text()
    told = card[card.index("transformers from") : card.index("```python")]
    (row,) = re.findall(r"^\| transformers \|.*$", TABLE.read_text(), re.M)
    versions = re.findall(r"\d+\.\d+\.\d+", told)
    assert versions == re.findall(r"\d+\.\d+\.\d+", row)
    assert set(versions) <= {*PINS, transformers.__version__}


def test_the_tools_that_people_are_told() -> None:
    """Each version in the docs' table is one that a test here names, or one that is installed."""
    rows = re.findall(
        r"^\| ([^|]+) \| ([^|]+) \|.*\| 20\d\d-\d\d-\d\d \|$", TABLE.read_text(), re.M
    )
    named = "".join(file.read_text() for file in HERE.glob("test_*.py"))
    told = {tool: re.findall(r"\d+\.\d+\.\d+|\b[0-9a-f]{7}\b", said) for tool, said in rows}
    assert set(OTHERS) <= set(told) and all(told[tool] for tool in OTHERS)
    for tool in OTHERS:
        for version in told[tool]:
            assert version in named or version == importlib.metadata.version(tool), tool


def test_each_root_names_every_file_that_it_needs() -> None:
    """Transformers before 5.10 copies only those; and 4.46 never ends where files import each other in a circle."""
    files = bundle()
    imports = {name: relative(source) for name, source in files.items()}
    assert set.union(*imports.values()) | {f"{root}.py" for root in ROOTS} == set(files)
    for root in ROOTS:
        waiting, needed = [f"{root}.py"], set()
        while waiting:
            new = imports[waiting.pop()] - needed
            needed |= new
            waiting += new
        assert f"{root}.py" not in needed, "a circle"
        assert imports[f"{root}.py"] == needed


def relative(source: str) -> set[str]:
    """Files that a file of the folder imports."""
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    return {f"{node.module}.py" for node in nodes if node.level == 1 and node.module}


def test_the_tokenizer_of_all_versions(root: Path) -> None:
    """Transformers 5 writes what 4 does not know; 4.46 reads the chat template from no other file."""
    folder = root / "olmo2" if (root / "olmo2").is_dir() else made(root, "olmo2").folder
    values = json.loads((folder / "tokenizer_config.json").read_text())
    assert values["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"backend", "is_local", "local_files_only", "extra_special_tokens"} & set(values)
    assert values["additional_special_tokens"] == LIKE_OTHERS["additional_special_tokens"]
    assert (
        values["clean_up_tokenization_spaces"] is False
    )  # 4 would delete spaces that were answered
    assert values["chat_template"] == (folder / "chat_template.jinja").read_text()
