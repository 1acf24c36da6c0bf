"""Two stores on loopback, started once, and a folder of a test's own in each."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from store_servers import Wire, served

from molmo_ds import files
from molmo_ds.files import Remote
from molmo_ds.stores import upload


@dataclass
class Store:
    """A wire to a server, and an empty folder there."""

    wire: Wire
    folder: Remote


@pytest.fixture(scope="session")
def wires() -> Iterator[dict[str, Wire]]:
    """By the scheme of its URLs."""
    with served("s3") as s3, served("gcs") as gs:
        yield {"s3": s3, "gs": gs}


@pytest.fixture(params=["s3", "gs"])
def store(
    request: pytest.FixtureRequest,
    wires: dict[str, Wire],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Store:
    """Each of the two stores, of which parts are small and tries follow each other at once."""
    scheme = getattr(request, "param", "s3")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("S3_ENDPOINT_URL", wires["s3"].address)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", wires["gs"].address)
    # copies of what is in a store, kept by its URL, which an earlier run of the tests had too
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(upload, "PART", 100_000)
    monkeypatch.setattr(files, "FIRST_DELAY", 0.02)
    wire = wires[scheme]
    wire.faults.clear()
    wire.seen.clear()
    wire.let_go.clear()
    if scheme == "s3":
        system = files.filesystem("s3://bucket")
        if not system.exists("bucket"):
            system.mkdir("bucket")
    return Store(wire, Remote(f"{scheme}://bucket/{tmp_path.name}"))
