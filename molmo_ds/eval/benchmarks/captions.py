"""Captions and free questions: dense captions for a judge, the loss of held-out captions, replies to users' questions.

No rule scores these replies. Dense captions need shards of the user's own, whose annotations have the style
`long_caption`, and what a judge compares with (docs/guides/evaluate.md).
"""

from molmo_ds.eval.metrics.dense_caption import cap_f1
from molmo_ds.eval.row import unscored
from molmo_ds.eval.task import Published, Split, Task

TASKS = [
    Task(
        name="dense_caption_eval",
        benchmark="Dense captions",
        styles=("long_caption",),
        splits={"test": Split(shards="dense_caption_eval-test", questions=2730, public=False)},
        max_new_tokens=448,
        score=unscored,
        headline="cap_f1",
        derived=cap_f1,
        published=Published(figures=(None, None, 54.1, None), split="1,500 pictures of test"),
    ),
    Task(
        name="molmo2_cap_eval",
        benchmark="Molmo2-CapEval",
        styles=("video_long_caption",),
        splits={"test": Split(shards="molmo2_cap_eval-test")},
        max_new_tokens=2048,
        score=unscored,
        headline="none",
        aliases=("vixmo_caps_eval2",),
    ),
    Task(
        name="pixmo_cap",
        benchmark="PixMo-Cap",
        styles=("long_caption",),
        splits={"validation": Split(shards="pixmo_cap-validation", questions=2048)},
        max_new_tokens=448,
        score=unscored,
        headline="Loss",
    ),
    Task(
        name="user_qa",
        benchmark="PixMo-AskModelAnything",
        styles=("user_qa",),
        splits={"validation": Split(shards="pixmo_ask_model_anything-validation")},
        max_new_tokens=12,
        score=unscored,
        headline="none",
    ),
]
