"""What tests ask of a run's folder in a store: which checkpoints are whole there, and what its log says."""

import json
from pathlib import Path

from molmo_ds import files
from molmo_ds.weights import checkpoint, checksums

EXACT = ("loss", "accuracy", "tokens", "grad_norm/text", "grad_norm/vision", "grad_norm/connector")


def lines(text: str) -> list[dict]:
    """The numbers of each step in a log."""
    return [
        {key: line[key] for key in ("step", *EXACT)} for line in map(json.loads, text.splitlines())
    ]


def whole(checkpoints: files.Remote, folder: Path) -> list[str]:
    """Names of the checkpoints in the store, each of which is copied and compared with its checksums."""
    found = []
    for step in checkpoint.steps(checkpoints):
        copy = folder / step.name
        copy.mkdir(parents=True, exist_ok=True)
        manifest = checkpoint.read_manifest(step)
        for name in (*manifest.files, "manifest.json"):
            (copy / name).write_bytes((step / name).read_bytes())
        assert checksums.wrong_file(copy, manifest.files) is None
        there = checkpoint.open_checkpoint(copy)
        assert all(there.whole(name).isfinite().all() for name in there.shapes)
        found.append(step.name)
    return sorted(found)
