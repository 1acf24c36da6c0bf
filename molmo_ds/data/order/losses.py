"""What samples lose on their way into a sequence: counted by each lane, said with its number."""

from dataclasses import dataclass
from typing import Any

State = dict[str, Any]  # of a lane


@dataclass(frozen=True)
class Kind:
    """One way to lose something; its counts are two numbers of a lane's state."""

    name: str  # of SampleBuilder.lost
    samples: str  # in a lane's state: how many samples it met
    amount: str  # in a lane's state: how much they lost
    unit: str
    sentence: str


KINDS = (
    Kind(
        "tokens",
        "cut_samples",
        "cut_tokens",
        "tokens",
        "{samples} of {seen} samples were cut at data.sequence_length={length} and lost {amount} tokens",
    ),
    Kind(
        "frames",
        "repeating_samples",
        "repeated_frames",
        "frames",
        "{samples} of {seen} samples are videos with fewer frames than were taken, {amount} of which were shown again",
    ),
    Kind(
        "moments",
        "unshown_samples",
        "unshown_moments",
        "moments",
        "{samples} of {seen} samples lost {amount} moments of their tracks, at which no frame is shown",
    ),
)
NAMES = tuple(name for kind in KINDS for name in (kind.samples, kind.amount))
TOLD = ("seen", "bad", *NAMES)  # the counts of a lane that are summed over all of them


def add(counts: dict[str, int], lost: dict[str, int]) -> list[tuple[Kind, int]]:
    """Count one more sample that was built, whose losses are `lost` by name; those of its kinds that it met."""
    met = [(kind, lost[kind.name]) for kind in KINDS if lost.get(kind.name)]
    for kind, amount in met:
        counts[kind.samples] += 1
        counts[kind.amount] += amount
    return met


def totals(states: dict[int, State]) -> dict[str, int]:
    """The counts of some lanes together; states of earlier versions lack some."""
    return {name: sum(state.get(name, 0) for state in states.values()) for name in TOLD}


def sentences(counts: dict[str, int], length: int) -> list[str]:
    """What was lost, in words; of what did not happen nothing is said."""
    return [say(kind, counts, length) for kind in KINDS if counts[kind.samples]]


def say(kind: Kind, counts: dict[str, int], length: int) -> str:
    """One kind in words; `length` is data.sequence_length."""
    return kind.sentence.format(
        samples=counts[kind.samples], amount=counts[kind.amount], seen=counts["seen"], length=length
    )
