"""An evaluation's files against the reference's: names of folders, rows of predictions, prompts as they are shown."""

import re
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from golden_files import cases_of

from molmo_ds.data.tokens import IMAGE_TOKENS
from molmo_ds.eval.clients.own_client import prompt_text
from molmo_ds.eval.page import page_name
from molmo_ds.eval.provenance import results_base, results_name, step_of
from molmo_ds.eval.results import prediction
from molmo_ds.eval.row import Row
from molmo_ds.eval.run import DONE
from molmo_ds.eval.sets import resolve


class Letters:
    """A tokenizer of one id a letter, image tokens after them."""

    vocab_size = 0x110000

    def encode(self, text: str) -> list[int]:
        pieces = re.split(f"({'|'.join(map(re.escape, IMAGE_TOKENS))})", text)
        ids = []
        for piece in pieces:
            if piece in IMAGE_TOKENS:
                ids.append(self.vocab_size + IMAGE_TOKENS.index(piece))
            else:
                ids += map(ord, piece)
        return ids

    def decode(self, ids: list[int]) -> str:
        names = [*IMAGE_TOKENS]
        return "".join(chr(i) if i < self.vocab_size else names[i - self.vocab_size] for i in ids)


def shown(text: str) -> str:
    letters = Letters()
    return prompt_text(letters, letters.encode(text))


def test_prompt_text():
    for case in cases_of("prompt_text"):
        assert shown(case["text"]) == case["out"], case


def value(given: Any) -> Any:
    """A value of a golden's metadata; `<float64> 2.5` stands for numpy's."""
    found = re.fullmatch(r"<(\w+)> (.*)", given) if isinstance(given, str) else None
    if not found or found[1] == "ndarray":
        return given if not found else np.zeros((1, 2))
    kind = getattr(np, "bool_" if found[1] == "bool" else found[1])
    return kind(found[2] == "True" if found[1] == "bool" else float(found[2]))


def test_prediction_rows():
    """Metadata named `prompt` or `prediction` takes the place of the real one in the reference; ours is renamed."""
    for case in cases_of("prediction_rows"):
        about = {name: value(one) for name, one in case["metadata"].items()}
        row = Row(id="ours", index=0, picture="", annotation={}, metadata=about)
        scored = {"reply": case["prediction"], "tokens": 3, "prompt": shown(case["prompt"])}
        wanted = dict(case["row"])
        for name in {"prompt", "prediction"} & set(about):
            wanted[f"metadata_{name}"] = wanted[name]
            wanted[name] = scored["prompt"] if name == "prompt" else case["prediction"]
        wanted.pop("n_tokens", None)  # the ids, which we do not keep
        made = prediction(row, scored)
        ours = {"id", "token_count"} | ({"example_id"} - set(about))
        assert {name: one for name, one in made.items() if name not in ours} == wanted, case
        order = [name for name in made if name in case["keys_in_order"] and name in about]
        assert order == [name for name in case["keys_in_order"] if name in order]


def task_of(name: str) -> Any:
    return resolve(name)[0][0]


def test_result_folder():
    """Without a folder named the reference saves next to a model, where another's results lie, or not at all."""
    checked = 0
    for case in cases_of("result_folder"):
        path = Path(case["load_path"])
        if case["folder"] is None:
            continue
        base = Path(case["save_dir"]) if case["save_dir"] else results_base(path)
        name = results_name(
            task_of(case["dataset"]), case["split"], step_of(path), case["eval_name"] or ""
        )
        golden = PurePosixPath(case["folder"])
        if len(path.parts) == 1 and step_of(path) is not None:
            # the reference knows the step of a path with a slash only
            golden = golden.with_name(
                golden.name.replace("predictions-", f"predictions-ck{step_of(path)}-")
            )
        if not case["save_dir"] and step_of(Path(path.name)) is None:
            golden = path / golden.name
        assert base / name == Path(golden), case
        assert PurePosixPath(case["metric_file"]).name == DONE
        checked += 1
    assert checked > 5


def test_files_of_each_task():
    """Two splits of a task are two evaluations; in the reference the second was taken for done."""
    for case in cases_of("cached_metrics"):
        jobs = resolve(case["tasks"])
        labels = [f"{task.name}:{split}" for task, split in jobs]
        assert set(case["evaluated"]) <= set(labels), case
        made = {
            f"{results_name(task, split, None)}/{file}"
            for task, split in jobs
            for file in (DONE, page_name(task))
        }
        assert len(made) == 2 * len(jobs)
        assert set(case["files"]) <= made, case
        if all(word.partition(":")[0] == word for word in case["tasks"]):
            done = set(case["metrics_already_there"])
            assert {label for label in labels if label.partition(":")[0] not in done} == set(
                case["evaluated"]
            ), case
