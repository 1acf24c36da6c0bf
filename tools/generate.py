"""Asks a trained model about pictures (molmo_ds/cli/ask.py; the same as `molmo-ds ask`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("ask")
