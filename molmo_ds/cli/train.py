"""Trains in this process; molmo_ds/train.py says how launchers start it on several."""

from molmo_ds import train


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and train; ends the process."""
    train.main(arguments)
