"""Evaluates a checkpoint or a server on benchmarks (molmo_ds/cli/evaluate.py; the same as `molmo-ds evaluate`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("evaluate")
