"""Items whose pictures have web addresses, fetched into a store before the first of them is made a sample."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm import tqdm

from molmo_ds.data.convert.items import Fault, RowItem
from molmo_ds.data.convert.origins import DataSet, Lines
from molmo_ds.data.convert.rows import Mapping
from molmo_ds.data.convert.table import Table
from molmo_ds.data.decode import BadSample
from molmo_ds.data.sources.fetching.fetch import describe, fetch
from molmo_ds.data.sources.fetching.store import Request, Store


@dataclass
class Fetched:
    """The items of an origin, which is read twice: for the addresses, and once their pictures are here."""

    origin: DataSet | Lines | Table
    mapping: Mapping
    store: Path

    @property
    def passed(self) -> Counter[str]:
        """Counts of what the origin passes over."""
        return self.origin.passed

    def __iter__(self) -> Iterator[RowItem | Fault]:
        items = tqdm(self.origin, unit=" rows", desc="addresses")
        addresses = {
            address
            for item in items
            if isinstance(item, RowItem)
            for address in item.addresses(self.mapping)
        }
        self.origin.passed.clear()
        if not addresses:
            yield from self.origin
            return
        with contextlib.closing(Store(self.store)) as store:
            report = fetch([Request(address) for address in sorted(addresses)], store)
            tqdm.write(f"{self.store}: {describe(report)}")
            for item in self.origin:
                yield self._here(item, store) if isinstance(item, RowItem) else item

    def _here(self, item: RowItem, store: Store) -> RowItem:
        """The item with the places of its pictures."""
        places = {}
        for address in item.addresses(self.mapping):
            request = Request(address)
            places[address] = store.find(request) or BadSample(
                f"The picture of {address} could not be fetched: {store.cause(request)}."
            )
        return replace(item, fetched=places)
