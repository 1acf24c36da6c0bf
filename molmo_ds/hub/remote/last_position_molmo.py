"""Where an answer has to end: at the last position that the model knows."""

import warnings
from typing import Any

from torch import Tensor
from transformers import StoppingCriteria


class LastPosition(StoppingCriteria):
    """Ends each row at the last position that the model knows; `lengths` [B] are the tokens of the prompts."""

    def __init__(self, lengths: Tensor, width: int, known: int) -> None:
        self.room = known - lengths  # new tokens of each row
        self.width = width  # of the prompts, padding included
        self.known = known
        if int(self.room.min()) < 1:
            longest = int(lengths.max())
            raise ValueError(
                f"The prompt has {longest} tokens and the model knows {known} positions; make it shorter."
            )

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        """bool [rows]: the beams or samples of a prompt lie one after the other."""
        times = len(input_ids) // len(self.room)
        return (
            input_ids.shape[1] - self.width >= self.room.to(input_ids.device)
        ).repeat_interleave(times)

    def warn(self, sequences: Tensor, ends: set[int]) -> None:
        """Say how many answers [B * times, T] were ended here, by none of the tokens `ends`."""
        times = len(sequences) // len(self.room)
        room = self.room.repeat_interleave(times).tolist()
        answers = [
            row[self.width : self.width + places].tolist() for row, places in zip(sequences, room)
        ]
        cut = sum(
            len(answer) == places and not ends & set(answer)
            for answer, places in zip(answers, room)
        )
        if cut:
            warnings.warn(
                f"{cut} of {len(answers)} answers ended at position {self.known}, the last that the model knows: prompt"
                " and answer share these positions.",
                stacklevel=3,
            )
