"""Made-up rows through models of lmms-eval; started by test_kits_themselves.py in lmms-eval's environment.

    python lmms_calls.py FOLDER CALLS.json SAID.json

FOLDER holds the task `textvqa_made` and its rows. CALLS.json is a list of keyword arguments of `simple_evaluate`;
SAID.json receives, for each, the answers in the order of the rows and the task's figure.
"""

import json
import sys
from pathlib import Path

from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager

TASK = "textvqa_made"


def main(folder: str, calls: str, out: str) -> None:
    """Evaluate with each model."""
    manager = TaskManager(include_path=folder, include_defaults=False)
    said = []
    for options in json.loads(Path(calls).read_text()):
        found = simple_evaluate(tasks=[TASK], task_manager=manager, **options)
        rows = sorted(found["samples"][TASK], key=lambda row: row["doc_id"])
        answers = [row["filtered_resps"][0] for row in rows]
        said.append({"answers": answers, "figure": found["results"][TASK]["exact_match,none"]})
    Path(out).write_text(json.dumps(said))


if __name__ == "__main__":
    main(*sys.argv[1:])
