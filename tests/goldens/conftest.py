"""Where the goldens lie: `MOLMO_GOLDENS=DIR pytest tests/goldens` runs every part against another folder."""

from pathlib import Path

import golden_files
import pytest

PARTS = ("A_model", "B_preproc", "C_text", "D_metrics", "E_optim", "F_recipes", "G_video")


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The golden folder, which must exist; what is missing in it is named by the test that reads it."""
    path = golden_files.folder()
    assert path.is_dir(), f"there is no golden folder {path}"
    assert any((path / part).is_dir() for part in PARTS), f"{path} holds none of {', '.join(PARTS)}"
    return path


@pytest.fixture(autouse=True)
def named(request: pytest.FixtureRequest, goldens: Path) -> None:
    """A parameter that stands for a missing file ends the test with the file's name."""
    values = request.node.callspec.params.values() if hasattr(request.node, "callspec") else ()
    golden_files.skip_missing(*(value for value in values if isinstance(value, str)))
