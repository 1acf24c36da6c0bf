"""The part of a parameter that a rank keeps."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Place:
    """The part of a flattened parameter that this rank keeps: elements [start, start + size)."""

    start: int
    size: int
    # where they are elements [offset, offset + size); of a frozen parameter the weight itself
    master: Tensor
    offset: int
    split: bool  # whether ZeRO gives the other ranks other elements; else every rank keeps the same
