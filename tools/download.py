"""Downloads public data sets as shards (molmo_ds/cli/download.py; the same as `molmo-ds download`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("download")
