"""Serves a model over HTTP (molmo_ds/cli/serve.py; the same as `molmo-ds serve`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("serve")
