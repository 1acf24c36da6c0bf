"""Words that this package's code and pages do not use, for plain ones that say the same."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLAIN = {"anew": "again", "dearest": "most expensive", "whoever": "the one who"}
NEVER = re.compile(rf"\b({'|'.join(PLAIN)})\b", re.IGNORECASE)
SKIPPED = {Path("tests/test_words.py"), Path("docs/changelog.md")}


def test_plain_words() -> None:
    found = []
    for folder in ("molmo_ds", "docs", "tests", "tools", "examples"):
        for path in sorted((ROOT / folder).rglob("*")):
            here = path.relative_to(ROOT)
            if path.suffix not in (".py", ".md") or here in SKIPPED:
                continue
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                found += [f"{here}:{number}: {word}" for word in NEVER.findall(line)]
    assert not found, found
