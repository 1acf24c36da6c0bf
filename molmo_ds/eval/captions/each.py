"""A judge asked about many things: so many at a time as its endpoint says, with a bar, the first fault ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from molmo_ds.eval.captions.cache import Cache
from molmo_ds.eval.captions.judge import Endpoint, Judge

Asked = TypeVar("Asked")
Found = TypeVar("Found")


async def each(
    endpoint: Endpoint,
    cache: Path,
    items: Sequence[Asked],
    ask: Callable[[Judge, Asked], Awaitable[Found]],
    unit: str,
) -> list[Found]:
    """What `ask` finds of each item, in their order.

    Args:
        cache: folder of the judge's replies.
        unit: what the bar calls an item.
    """
    waiting = iter(enumerate(items))
    done: dict[int, Found] = {}
    with tqdm(total=len(items), desc="judge", unit=unit, dynamic_ncols=True) as bar:
        async with Judge(endpoint, Cache(cache)) as model:

            async def work() -> None:
                for index, item in waiting:
                    done[index] = await ask(model, item)
                    bar.set_postfix(cached=model.cached, sent=model.sent, tokens=model.tokens)
                    bar.update()

            workers = [asyncio.create_task(work()) for _ in range(endpoint.parallel)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
    return [done[index] for index in range(len(items))]
