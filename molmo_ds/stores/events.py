"""What happens to a run, a line each: when it started and from which step, how it ended, which host was lost."""

import json
import time
from pathlib import Path
from typing import Any

NAME = "events.jsonl"


def note(folder: Path, event: str, **facts: Any) -> None:
    """Add an event to the folder's file."""
    with open(folder / NAME, "a") as stream:
        stream.write(json.dumps({"time": time.time(), "event": event, **facts}) + "\n")
