"""Keeps what a slow function made of its last arguments, which may be equal but not hashable: a rope_scaling's dict."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
KEPT = 16  # results of a function


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """The function, asked once for equal arguments, which must be dataclasses or plain values."""
    made: dict[str, T] = {}

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> T:
        key = repr((args, named))
        if key not in made:
            if len(made) == KEPT:
                made.pop(next(iter(made)))
            made[key] = function(*args, **named)
        return made[key]

    return call
