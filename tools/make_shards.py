"""Writes shards and indexes tars (molmo_ds/cli/make_shards.py; the same as `molmo-ds shards make`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("make_shards")
