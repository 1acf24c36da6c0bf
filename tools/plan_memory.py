"""Plans the bytes per GPU of a run (molmo_ds/cli/plan.py; the same as `molmo-ds plan`)."""

from molmo_ds.cli import run

if __name__ == "__main__":
    run("plan")
