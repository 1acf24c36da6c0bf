"""Scores of lmms-eval 0.7.3 and ours for equal questions and replies, in every benchmark that both score by a rule.

What differs is listed, with the reason; docs/guides/kits.md says it to users.
"""

import json
import subprocess
from pathlib import Path

import pytest
from environments import clean, environment_at
from test_kits_themselves import LMMS

pytestmark = pytest.mark.everything
HERE = Path(__file__).parent
NOTHING = ("a cat", "a dog", "It is a big animal that has four legs", "")  # names no letter
BRACKETS = ("(B)", "(B) a cat")
SENTENCES = ("The answer is B.", "The answer is (B).")
# the reference's rule: a reply is right if it starts with the letter, "Both" too
STARTS = {(0, 1): (*BRACKETS, *SENTENCES)}
SMALL = {(1, 0): ("b",), (0, 1): (*BRACKETS, *SENTENCES)}
# the answer is what follows `Answer:`, else the commonest line; three of ten people are enough
PEOPLE = {(1, 0): ("Answer: red", "blue\nred\nred"), (1, 0.9): ("blue",)}
# half of the text is not below the threshold of one half
DOCUMENTS = {(0, 0.5): ("12 main",)}
# (ours, theirs): the replies
DIFFERENT = {
    # the option that is nearest by edits, where lmms-eval wants the letter
    "ai2d": {(1, 0): ("B: a cat", "(B) a cat", "Answer: B", "Both")},
    "science_qa": {(1, 0): (*BRACKETS, "B: a cat", "Answer: B", "Both")},
    "real_world_qa": {(1, 0): ("b",), (0, 1): SENTENCES},
    # what names no letter is drawn, where lmms-eval reads more or counts it as wrong
    "mmmu": {(1, "drawn"): ("B: a cat",)},
    "nextqa_mc": {(1, "drawn"): ("B: a cat",)},
    "ego_schema": {(1, "drawn"): ("B: a cat",)},
    "blink": {("drawn", 1): ("b", "Both"), ("drawn", 0): NOTHING},
    "muir_bench": {
        ("drawn", 1): ("b",),
        ("drawn", 0): (*NOTHING, "Both"),
        (1, 0): (*BRACKETS, *SENTENCES, "B: a cat", "Answer: B"),
    },
    "mvbench": {**STARTS, (1, 0): ("Both",)},
    "motionbench": STARTS,
    "mlvu_mc": SMALL,
    "lvbench": SMALL,
    "video_eval_pro_mc": SMALL,
    "tomato": {(1, 0): ("b", "Answer: B"), (0, 1): SENTENCES},
    "plm_fgqa": {(0, 1): (*BRACKETS, "Answer: B"), (1, 0): ("B: a cat", "Both")},
    "video_mme": {},
    "perception_test": {},
    "long_video_bench": {},
    "vqa_v2": PEOPLE,
    "text_vqa": PEOPLE,
    "okvqa": PEOPLE,
    "gqa": {(1, 0): ("Answer: red", "blue\nred\nred"), (0, 1): ("red.",)},
    "real_world_qa, open": {(1, 0): ("a red", "Answer: red", "blue\nred\nred")},
    "doc_qa": DOCUMENTS,
    "info_qa": DOCUMENTS,
    "chart_qa": {(1, 0): ("Answer: 20",)},
    "mmmu, open": {},
    # counts are sentences in training
    "countbench_qa": {
        (1, 0): ("three", "3.", "There are 3.", "Counting the cats shows a total of 3.")
    },
    "pixmo_count_counting": {(1, 0): ("three",), (0, 1): ("There are 3 cats",)},
}


def test_scores_of_lmms_eval_beside_ours(tmp_path: Path) -> None:
    python = environment_at("lmms-eval", *LMMS)
    out = tmp_path / "said.json"
    done = subprocess.run(
        [str(python), str(HERE / "lmms_scores.py"), str(out)],
        capture_output=True,
        text=True,
        env=clean(PYTHONPATH=str(HERE.parents[1]), HF_HOME=str(tmp_path / "hf")),
        cwd=tmp_path,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, dict[tuple, set[str]]] = {}
    for task, replies in json.loads(out.read_text()).items():
        found[task] = {}
        for reply, (ours, theirs) in replies.items():
            if ours != theirs:
                found[task].setdefault((ours, theirs), set()).add(reply)
        assert any(scores == [1, 1] for scores in replies.values()), task
        assert any(scores == [0, 0] for scores in replies.values()), task
    wanted = {
        task: {pair: set(said) for pair, said in row.items()} for task, row in DIFFERENT.items()
    }
    assert found == wanted
