"""What was asked for last and is kept: open files, tables, chunks."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Recent:
    """The things asked for last, made when asked for and closed when others take their place.

    As many as weigh no more than `size` together, but always the last one.
    """

    def __init__(
        self,
        size: int,
        close: Callable[[Any], None] = lambda thing: None,
        weigh: Callable[[Any], int] = lambda thing: 1,
    ):
        self._size = size
        self._close = close
        self._weigh = weigh
        self._weight = 0
        self._things = OrderedDict()

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._things:
            self._things[key] = make()
            self._weight += self._weigh(self._things[key])
            while self._weight > self._size and len(self._things) > 1:
                _, oldest = self._things.popitem(last=False)
                self._weight -= self._weigh(oldest)
                self._close(oldest)
        self._things.move_to_end(key)
        return self._things[key]
