"""Who is prefilled and who decodes in which pass: a pure function of questions and tokens, without torch.

Every rank of a replica runs it on the same input and so comes to the same passes; nothing is broadcast but tokens.
The running rows are cut into groups, one for each stage of a pipeline, whose passes take turns.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

# rows begin when 1 / REFILL of a group's slots are free: few large prefills instead of many small ones
REFILL = 8


def compact(ended: Sequence[bool]) -> tuple[list[tuple[int, int]], int]:
    """(moves (from, to) of the last rows into the slots of those that have ended, rows that are left)."""
    left = sum(not one for one in ended)
    holes = [slot for slot in range(left) if ended[slot]]
    movers = [slot for slot in range(left, len(ended)) if not ended[slot]]
    return list(zip(movers, holes, strict=True)), left


@dataclass
class Row:
    """One answer."""

    name: str
    limit: int  # tokens that it may have
    room: int  # tokens that it can have up to the last position
    count: int = 0  # tokens that it has
    ended: bool = False
    question: Any = None  # the caller's


@dataclass
class Tree:
    """Answers whose prompts are prefilled together, since they begin with the same."""

    key: Hashable  # what they begin with
    rows: list[Row]
    tokens: int  # of the prefill


@dataclass
class Schedule:
    """The state of one replica.

    Args:
        slots: rows of each group.
        prefill_tokens: that a prefill may have, unless one tree alone has more.
        eos: the token that ends an answer.
        padded: whether each tree is padded to the longest of its prefill, and the padding counts.
    """

    slots: int
    groups: int
    prefill_tokens: int
    eos: int
    padded: bool = False
    waiting: deque[Tree] = field(default_factory=deque)
    running: list[list[Row]] = field(init=False)  # by group; row i is in slot i
    rows: dict[str, Row] = field(default_factory=dict)  # all that have not ended, by name
    open: dict[Hashable, Tree] = field(default_factory=dict)  # trees that wait and may grow, by key

    def __post_init__(self) -> None:
        self.running = [[] for _ in range(self.groups)]

    def add(self, row: Row, key: Hashable, prefix: int, tokens: int) -> None:
        """Queue an answer to `tokens` tokens; it joins a tree that waits, if one begins with the same `prefix`."""
        self.rows[row.name] = row
        tree = self.open.get(key)
        if tree is None or len(tree.rows) == self.slots:
            tree = Tree(key, [], prefix)
            self.waiting.append(tree)
            self.open[key] = tree
        tree.rows.append(row)
        tree.tokens += tokens - prefix

    def drop(self, name: str) -> None:
        """End an answer; a name that is not in flight has ended by itself."""
        row = self.rows.pop(name, None)
        if row is not None:
            row.ended = True

    def settle(self, group: int) -> tuple[list[tuple[int, int]], int]:
        """Take ended rows out of a group that has no pass in flight: (moves of rows (from, to), rows that are left)."""
        rows = self.running[group]
        moves, left = compact([row.ended for row in rows])
        for source, target in moves:
            rows[target] = rows[source]
        del rows[left:]
        return moves, left

    def begin(self, group: int) -> list[Tree]:
        """The trees whose rows join a group now, their rows in order; none if it is to decode."""
        rows = self.running[group]
        free = self.slots - len(rows)
        if rows and free * REFILL < self.slots:
            return []
        chosen: list[Tree] = []
        tokens = 0
        longest = 0
        while self.waiting:
            tree = self.waiting[0]
            # some were dropped before they began
            tree.rows = [row for row in tree.rows if not row.ended]
            longest = max(longest, tree.tokens)
            more = longest * (len(chosen) + 1) if self.padded else tokens + tree.tokens
            if len(tree.rows) > free or (chosen and more > self.prefill_tokens):
                break
            self.waiting.popleft()
            if self.open[tree.key] is tree:
                del self.open[tree.key]
            if tree.rows:
                chosen.append(tree)
                tokens += tree.tokens
                free -= len(tree.rows)
                rows += tree.rows
        return chosen

    def take(self, rows: Sequence[Row], tokens: Sequence[int]) -> list[tuple[int, str | None]]:
        """Count each row's new token: (index of the row, why it ends) of those that were not dropped meanwhile."""
        out = []
        for index, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.ended:
                continue
            row.count += 1
            end = self._end(row, token)
            if end:
                self.drop(row.name)
            out.append((index, end))
        return out

    def _end(self, row: Row, token: int) -> str | None:
        if token == self.eos:
            return "stop"
        if row.count >= row.limit:
            return "length"
        return "context" if row.count >= row.room else None
