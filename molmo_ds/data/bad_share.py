"""The share of unusable samples above which the data is wrong: in training and where data comes in."""

FEWEST_SEEN = 10_000  # the share of bad samples is taken of at least this many


def too_many(bad: int, seen: int, share: float) -> bool:
    """Whether `bad` of `seen` samples are more than a share allows."""
    return bad > share * max(seen, FEWEST_SEEN)
