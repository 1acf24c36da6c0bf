"""Makes a page over a run's folder (molmo_ds/cli/show.py; the same as `molmo-ds show`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("show")
