"""The docs: the site builds from this clone alone, its links hold, and it names what there is."""

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from molmo_ds import setting_list, settings
from molmo_ds.config import RunConfig
from molmo_ds.engine.strategy.refusals import TABLE
from molmo_ds.eval.benchmarks import BENCHMARKS
from molmo_ds.eval.set_table import SETS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
LOADED = (  # what a browser would fetch, and the attribute that says from where
    ("script", "src"),
    ("link", "href"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "src"),
)
TO_BE_WRITTEN = {  # by who follows the pages on adding a kernel and a benchmark
    "molmo_ds/ops/splice/cpu.py",
    "molmo_ds/eval/benchmarks/dvqa.py",
}

spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


class Fetched(HTMLParser):
    """Addresses that a page loads by itself."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "link" and given.get("rel") == "canonical":
            return
        self.addresses += [
            given[name] or "" for kind, name in LOADED if kind == tag and name in given
        ]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; a link or an anchor that does not hold fails the build."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed; pip install -e '.[docs]'")
    out = tmp_path_factory.mktemp("docs") / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(out),
    ]
    silent = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=silent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_every_page_is_built_and_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    assert len(PAGES) > 25
    for page in PAGES:
        html = (site / page.relative_to(ROOT / "docs").with_suffix(".html")).read_text()
        assert [address for address in Fetched(html).addresses if "//" in address] == []
        assert not generate.MARK.search(html)
    styles = "".join(path.read_text() for path in site.rglob("*.css"))
    assert re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", styles) == []


def test_a_fetched_font_would_be_seen() -> None:
    page = '<link rel="stylesheet" href="https://fonts.example/css"><a href="https://example.org">a link</a>'
    assert Fetched(page).addresses == ["https://fonts.example/css"]


def test_every_setting_is_on_its_page(site: Path) -> None:
    html = (site / "reference/settings.html").read_text()
    for setting in setting_list.settings(RunConfig):
        assert f"<code>{setting.name.rpartition('.')[2]}</code>" in html, setting.name


def test_the_api_names_what_there_is(site: Path) -> None:
    html = (site / "reference/api.html").read_text()
    for name in re.findall(r"members: \[(.*)\]", (ROOT / "docs/reference/api.md").read_text()):
        for member in name.split(", "):
            assert re.search(rf'id="molmo_ds\.[\w.]*\b{member}"', html), member


def test_links_of_pages_outside_the_site_hold() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#]+)", page.read_text())
        assert links
        missing = [link for link in links if "//" not in link and not (ROOT / link).exists()]
        assert missing == [], page


def test_pages_that_the_code_names_are_there() -> None:
    named = set()
    for folder in ("molmo_ds", "tools", "tests", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            named |= set(re.findall(r"\bdocs/[\w/-]+\.md", path.read_text()))
    assert len(named) > 3
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_commands_in_pages_are_there_and_know_their_options() -> None:
    known = generate.described()
    seen = 0
    for page in [ROOT / "README.md", *PAGES]:
        if page.name == "changelog.md":
            continue
        for line in page.read_text().splitlines():
            for name, rest in re.findall(r"python (tools/[\w/]+\.py)([^`|;]*)", line):
                assert name in known, f"{page}: {name}"
                options = {word for words in known[name][1] for word in words.split(", ")}
                for option in re.findall(r"(?<!\S)\[?(--[\w-]+)", rest.partition("#")[0]):
                    assert option in options | {"--help"}, f"{page}: {name} {option}"
                seen += 1
    assert seen > 30


def test_files_that_pages_name_are_there() -> None:
    named = set()
    for page in PAGES:
        if page.name != "changelog.md":
            named |= set(
                re.findall(r"`((?:[a-z_]+/)+[a-z0-9_]+\.(?:py|json|yaml|sh))`", page.read_text())
            )
    assert len(named) > 50
    there = {
        name for name in named if (ROOT / name).exists() or (ROOT / "molmo_ds" / name).exists()
    }
    assert sorted(named - there - TO_BE_WRITTEN) == []


def test_the_first_fine_tune_names_the_recipes_and_overrides_that_are_there() -> None:
    page = (ROOT / "docs/start/first-fine-tune.md").read_text()
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "examples/finetune").glob("*.yaml")}
    assert set(re.findall(r"examples/finetune/\w+\.yaml", page)) == recipes
    overrides = re.search(r"pointing\.yaml \\\n\s+(.*?)\s+# every weight", page)[1]
    for recipe in recipes:
        assert settings.load(ROOT / recipe).lora.components == ("text",)
        config = settings.load(ROOT / recipe, overrides.replace("'", "").split())
        assert config.lora.components == () and config.optim.text.lr == 1e-5


def test_the_page_of_benchmarks_lists_every_task_and_set() -> None:
    rows = generate.benchmarks().splitlines()[2:]
    assert len(rows) == len(BENCHMARKS)
    for row, task in zip(rows, BENCHMARKS.values(), strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[0].startswith(f"`{task.name}`")
        assert cells[3:5] == [", ".join(task.styles), task.tokens_shown]
    assert [row.split("`")[1] for row in generate.sets().splitlines()[2:]] == list(SETS)


def test_the_page_of_strategies_lists_every_refusal() -> None:
    rows = generate.refusals().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [row.name for row in TABLE]
    assert not [row for row in rows if "{" in row]
