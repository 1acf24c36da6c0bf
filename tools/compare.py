"""Compares two evaluations question by question (molmo_ds/cli/compare.py; the same as `molmo-ds compare`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("compare")
