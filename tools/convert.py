"""Converts weights from and to ours (molmo_ds/cli/convert.py; the same as `molmo-ds convert`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("convert")
