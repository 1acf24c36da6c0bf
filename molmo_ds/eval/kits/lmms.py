"""molmo_ds in lmms-eval 0.7: python -m lmms_eval --model molmo_ds --model_args checkpoint=runs/mine --tasks chartqa

An entry point in setup.cfg registers it where both packages are installed. One process; for many GPUs there is
`molmo-ds evaluate`.
"""

from __future__ import annotations

from typing import Any

from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms

from molmo_ds.eval.kits.answering import Kit
from molmo_ds.infer.text import cut

MOST_TOKENS = 448  # where a task does not say


class Molmo(lmms):
    """A checkpoint that answers, greedily; arguments as in `Kit`, those of lmms-eval's command line among them."""

    is_simple = False

    def __init__(
        self,
        checkpoint: str,
        style: str = "auto",
        max_crops: int | None = None,
        tokenizer: str | None = None,
        precision: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,  # of lmms-eval, for sizes that it finds out
    ):
        super().__init__()
        self.batch_size = int(batch_size)
        # lmms-eval's default, given without a GPU too
        device = None if device == "cuda:0" else device
        self.kit = Kit(
            checkpoint,
            style=style,
            max_crops=max_crops,
            batch=self.batch_size,
            tokenizer=tokenizer,
            device=device,
            precision=precision,
        )

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """The answers in the order of the requests, each up to the first of the task's `until`."""
        ends = []
        for request in requests:
            _, to_messages, options, number, task, split = request.arguments
            turns, pictures = read_messages(to_messages(self.task_dict[task][split][number]))
            self.kit.add(task, turns, pictures, int(options.get("max_new_tokens", MOST_TOKENS)))
            until = options.get("until") or []
            ends.append(tuple(filter(None, [until] if isinstance(until, str) else until)))
        found = zip(self.kit.answers(), ends, strict=True)
        return [
            GenerationResult(cut(text, end).strip(), TokenCounts(output_tokens=count))
            for (text, count), end in found
        ]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not there."""
        raise ValueError(
            "molmo_ds answers no tasks of several rounds in lmms-eval; leave them out."
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not there."""
        raise ValueError(
            "molmo_ds gives no log-likelihoods in lmms-eval; choose the generating form of the task."
        )


def read_messages(messages: list[dict[str, Any]]) -> tuple[list[str], list[Any]]:
    """(the turns, user first; the pictures in order) of a chat; a system's words go before the user's first.

    Raises ValueError for videos and sounds.
    """
    turns: list[str] = []
    pictures: list[Any] = []
    before = ""
    for message in messages:
        texts = []
        for part in message["content"]:
            if part["type"] == "text":
                texts.append(part["text"])
            elif part["type"] == "image":
                pictures.append(part["url"])
            else:
                raise ValueError(
                    f"molmo_ds answers about pictures in lmms-eval, not about {part['type']}; leave it out."
                )
        text = "\n".join(texts)
        if message["role"] == "system":
            before = f"{text}\n"
        else:
            turns.append(before + text)
            before = ""
    return turns, pictures
