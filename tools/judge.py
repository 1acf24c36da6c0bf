"""Judges dense captions with a language model (molmo_ds/cli/judge.py; the same as `molmo-ds judge`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("judge")
