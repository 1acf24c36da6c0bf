"""Files for the test servers that hold the answers of splits whose answers are not public.

Forms: VQAv2 (EvalAI 830), DocVQA and InfographicVQA (Robust Reading Competition, challenge 17), A-OKVQA's leaderboard,
MMMU (EvalAI), TextVQA. The replies are shortened as allenai/molmo 793fa38 does in scripts/build_submission_file.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from molmo_ds.eval.metrics.choice import by_name, option_names, read_option
from molmo_ds.eval.metrics.mmmu import letter_said
from molmo_ds.eval.metrics.reply import commonest_line, parse_answer
from molmo_ds.eval.row import Row
from molmo_ds.eval.task import Task
from molmo_ds.files import write_atomic

SHOWN = 3  # ids that a sentence names
Submission = list[dict[str, Any]] | dict[str, Any]


def short_answer(reply: str) -> str:
    """The stripped reply; of several lines the commonest, with inner blanks squeezed only then."""
    text = reply.strip()
    return commonest_line(text) if "\n" in text else text


def submission(
    task: Task,
    rows: Sequence[Row],
    replies: Mapping[str, str],
    expected: Iterable[Any] | None = None,
) -> Submission:
    """The test server's file of a task, in the order of its rows; `replies` by the row's id.

    Args:
        expected: the question ids that the server asks for, where they are known apart from the rows.

    Raises ValueError where the task has no server, and where a question is missing, there twice, or not asked for.
    """
    form = FORMS.get(task.submission)
    if form is None:
        raise ValueError(f"There is no test server for {task.name}; {', '.join(FORMS)} have one.")
    asked = {row.id: question_id(row) for row in rows}
    _check(task, "without a reply", [asked[name] for name in asked if name not in replies])
    _check(task, "not asked", [name for name in replies if name not in asked])
    _check(
        task,
        "there twice",
        [name for name, count in Counter(map(question_id, rows)).items() if count > 1],
    )
    if expected is not None:
        wanted = set(expected)
        _check(task, "missing", sorted(wanted - set(asked.values()), key=str))
        _check(task, "unknown to the server", sorted(set(asked.values()) - wanted, key=str))
    return form([(row, replies[row.id]) for row in rows])


def expected_number(task: Task, split: str, rows: Sequence[Row]) -> str | None:
    """A sentence where the split is known to have another number of questions than there are rows; else None."""
    known = task.splits.get(split)
    if known is None or known.questions in (None, len(rows)):
        return None
    return f"{task.name}:{split} has {known.questions:,} questions, and {len(rows):,} are here; a server wants them all."  # noqa: E501


def question_id(row: Row) -> Any:
    """The data set's own id of a question, of the type that it has there; ValueError where it has none."""
    found = row.metadata.get("example_id")
    if found is None:
        raise ValueError(
            f"The question {row.id} has no example_id, which a test server needs; make the shards again."
        )
    return found


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """A-OKVQA's two files as one, whose questions may have either answer or both."""
    names = [*one, *(name for name in other if name not in one)]
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in names}


def write(path: Path, content: Submission) -> None:
    """Write a submission whole or not at all."""
    write_atomic(path, (json.dumps(content, ensure_ascii=False) + "\n").encode(errors="replace"))


def answers_list(
    pairs: Iterable[tuple[Row, str]], key: str = "question_id"
) -> list[dict[str, Any]]:
    """A list of {KEY, answer}."""
    return [{key: question_id(row), "answer": short_answer(reply)} for row, reply in pairs]


def _document_answers(pairs: Iterable[tuple[Row, str]]) -> list[dict[str, Any]]:
    return answers_list(pairs, "questionId")


def _options(pairs: Iterable[tuple[Row, str]]) -> dict[str, Any]:
    """A-OKVQA: the text of the option that is meant."""
    out = {}
    for row, reply in pairs:
        index, _ = read_option(by_name(parse_answer(reply), row), option_names(row))
        out[str(question_id(row))] = {"multiple_choice": row.annotation["options"][index]}
    return out


def _direct_answers(pairs: Iterable[tuple[Row, str]]) -> dict[str, Any]:
    return {str(question_id(row)): {"direct_answer": short_answer(reply)} for row, reply in pairs}


def _exam(pairs: Iterable[tuple[Row, str]]) -> dict[str, str]:
    """MMMU: the letter of an option, drawn by the row's own generator where none can be read, or the text."""
    out = {}
    for row, reply in pairs:
        options = row.annotation.get("options")
        said = short_answer(reply)
        if options is not None:
            letters = [letter for letter, option in zip(option_names(row), options) if option]
            said = letter_said(parse_answer(reply), options) or row.random().choice(letters)
        out[str(question_id(row))] = said
    return out


def _check(task: Task, what: str, names: Sequence[Any]) -> None:
    if names:
        shown = ", ".join(map(str, names[:SHOWN]))
        more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
        raise ValueError(
            f"Questions of {task.name} are {what}: {shown}{more}. A test server takes whole files only."
        )


FORMS: dict[str, Callable[[Iterable[tuple[Row, str]]], Submission]] = {
    "vqa2": answers_list,
    "text_vqa": answers_list,
    "doc_qa": _document_answers,
    "info_qa": _document_answers,
    "a_okvqa_mc": _options,
    "a_okvqa_da": _direct_answers,
    "mmmu": _exam,
}
