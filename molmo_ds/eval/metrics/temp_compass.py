"""TempCompass: the rules of its tasks; where one finds no answer its makers ask a language model, here it is wrong.

Source: mattw-ai2/robo_mm_olmo_gantry 6832f80, olmo/eval/temp_compass_utils.py, after github.com/llyx97/TempCompass.
"""

from __future__ import annotations

import re

from molmo_ds.eval.metrics.video_choice import in_parts
from molmo_ds.eval.row import Row, Scores

_LETTER = re.compile(r"([A-D])(?:[.)].*)?", re.DOTALL)  # alone, or before a dot or a bracket
_SORT = re.compile(r"(?:Sentence|Option|Caption) ")


def score_temp_compass(reply: str, row: Row) -> Scores:
    """`all`, the task, and the task with its aspect of time; nothing for captions, which a judge reads."""
    task = row.metadata["task"]
    if task == "captioning":
        return {}
    answer = row.annotation["answer"]
    right = {"multi-choice": option, "yes_no": yes_or_no, "caption_matching": caption}[task](
        reply.strip(), answer, row.metadata["question"]
    )
    scores = {"all": float(right is True), "unreadable": float(right is None)}
    return in_parts(scores, task, f"{task}_{row.metadata['temporal_aspect']}")


def option(reply: str, answer: str, question: str) -> bool | None:
    """Whether the reply is the answer `B. text`, or its letter; None for neither an option nor a letter."""
    if reply == answer:
        return True
    found = _LETTER.fullmatch(reply)
    return found[1] == answer[0] if found else None


def yes_or_no(reply: str, answer: str, question: str) -> bool | None:
    """Whether the reply begins as the answer, yes or no."""
    said = next((word for word in ("yes", "no") if reply.lower().startswith(word)), None)
    return None if said is None else said == answer


def caption(reply: str, answer: str, question: str) -> bool | None:
    """Whether the reply is the answer `Caption A: text`, its name, its letter or its text."""
    lines = [line.partition(": ") for line in question.split("\n")[1:] if ": " in line]
    names = {name for name, _, _ in lines} | {_SORT.sub("", name) for name, _, _ in lines}
    texts = {text for _, _, text in lines}
    whole = {f"{name}: {text}" for name, _, text in lines}
    said = next((one for one in (reply, reply.replace(".", "")) if one in names), None)
    if said is None and reply in whole | texts:
        said = reply
    if said is None and ") " in reply and reply.split(") ")[1] in texts:
        said = reply.split(") ")[1]
    if said is None:
        return None
    name, _, text = answer.partition(": ")
    return said in (answer, name, text, _SORT.sub("", name))
