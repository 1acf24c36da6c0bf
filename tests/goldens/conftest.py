"""Where the goldens lie: `MOLMO_GOLDENS=DIR pytest tests/goldens` runs every part against another folder."""

from pathlib import Path

import golden_files
import pytest


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The golden folder, which must exist; a file that is missing in it fails the test that reads it."""
    path = golden_files.folder()
    assert path.is_dir(), f"there is no golden folder {path}"
    return path
