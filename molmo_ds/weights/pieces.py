"""Where the pieces of a flattened parameter lie: in one stretch, or in many at equal distances."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Stored:
    """A piece of a flattened parameter in a file: `size` elements from `start` on; `keys` as in checkpoint.py."""

    file: str
    start: int
    size: int
    keys: tuple[str, ...]
    stride: tuple[int, ...] = ()  # as in `runs`
    # of the tensors, which lie one behind the other from byte `offset` on; see blocks.py
    dtypes: tuple[str, ...] = ()
    offset: int = 0
    block: int = 0


def runs(start: int, size: int, stride: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """(first element of the whole, first element of the piece, length) of each contiguous stretch of a piece.

    Args:
        stride: () for one stretch; (width, distance, phase) for a piece of a shard that holds `width` elements out of
            every `distance`, and which begins `phase` elements behind the beginning of such a stretch.
    """
    if not stride:
        return [(start, 0, size)]
    width, distance, phase = stride
    out, done = [], 0
    while done < size:
        length = min(width - phase, size - done)
        out.append((start, done, length))
        start, done, phase = start + distance - phase, done + length, 0
    return out


def end_of(start: int, size: int, stride: tuple[int, ...]) -> int:
    """The element of the whole behind the last one of a piece."""
    if not stride or not size:
        return start + size
    width, distance, phase = stride
    full, rest = divmod(phase + size - 1, width)
    return start - phase + full * distance + rest + 1


@dataclass(frozen=True)
class Group:
    """`count` stretches of `length` elements each, one behind the other in the piece, `distance` apart in the whole."""

    start: int  # of the first, in the whole
    here: int  # of the first, in the piece
    length: int
    count: int = 1
    distance: int = 1

    @property
    def end(self) -> int:
        """The element of the piece behind the last one."""
        return self.here + self.count * self.length

    def cut(self, most: int) -> Iterator["Group"]:
        """A single stretch in parts that end at multiples of `most` elements of the piece; several as they are."""
        if self.count > 1:
            yield self
            return
        begin = self.here
        while begin < self.end:
            stop = min((begin // most + 1) * most, self.end)
            yield Group(self.start + begin - self.here, begin, stop - begin)
            begin = stop


def stretches(
    begin: int, size: int, stride: tuple[int, ...], first: int, last: int
) -> Iterator[Group]:
    """The stretches of a piece that lie in [first, last) of the whole, like ones together: see `runs`."""
    if not stride:
        start = max(begin, first)
        stop = min(begin + size, last)
        if start < stop:
            yield Group(start, start - begin, stop - start)
        return
    width, distance, phase = stride
    origin = begin - phase
    total = -(-(size + phase) // width)
    low = max(0, (first - origin - width) // distance + 1)
    high = min(total, -(-(last - origin) // distance))

    # the first and the last may be cut, by the piece's ends or by the range
    def part(number: int) -> Iterator[Group]:
        here = origin + number * distance
        behind = number * width - phase
        start = max(here, here - behind, first) if number == 0 else max(here, first)
        stop = min(here + width, last, here + size - behind)
        if start < stop:
            yield Group(start, behind + start - here, stop - start)

    for number in sorted({low, high - 1}) if low < high else ():
        yield from part(number)
    if high - low > 2:
        yield Group(
            origin + (low + 1) * distance,
            (low + 1) * width - phase,
            width,
            high - low - 2,
            distance,
        )
