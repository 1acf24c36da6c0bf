"""Makes a page of real batches (molmo_ds/cli/show_shards.py; the same as `molmo-ds shards show`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("show_shards")
