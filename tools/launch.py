"""Keeps one run going (molmo_ds/cli/launch.py; the same as `molmo-ds launch`)."""

from molmo_ds.cli import run
from molmo_ds.engine.launching.hosts import read_hosts

__all__ = ["read_hosts"]

if __name__ == "__main__":
    run("launch")
