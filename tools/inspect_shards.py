"""Checks the shards of a data set (molmo_ds/cli/inspect_shards.py; the same as `molmo-ds shards inspect`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("inspect_shards")
