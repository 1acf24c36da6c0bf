"""A model on so many ranks under ZeRO-3, with hollow files in a folder: what its start, save and resume come to."""

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from molmo_ds.architecture import MolmoConfig
from molmo_ds.config import OptimConfig, RunConfig
from molmo_ds.testing.scale import measures, saved
from molmo_ds.testing.scale.counting import Counts
from molmo_ds.testing.scale.ranks import Network
from molmo_ds.weights.checkpoint import Found
from molmo_ds.weights.first_weights import begun_from
from molmo_ds.weights.index import INDEX


@dataclass(frozen=True)
class Case:
    """What is counted is over all ranks; bytes are in units of the weights or of the state."""

    model: MolmoConfig
    ranks: int
    folder: Path

    @cached_property
    def network(self) -> Network:
        """A captioner's network, as its recipe trains it."""
        return Network.of(RunConfig(model=self.model, optim=OptimConfig(name="adamw")))

    @cached_property
    def weights(self) -> int:
        """Bytes in fp32."""
        return 4 * self.network.numbers

    @cached_property
    def source(self) -> Path:
        """The folder of weights."""
        return saved.weights(self.folder / "weights", self.network)

    @cached_property
    def parts(self) -> list[bytes]:
        """What the ranks tell rank 0 in a save."""
        return saved.parts(self.network, self.ranks)

    @cached_property
    def same(self) -> Path:
        """A checkpoint of as many ranks."""
        return saved.commit(self.folder / "same", self.network, self.parts)

    @cached_property
    def found(self) -> Found:
        """`same` as rank 0 opens it."""
        return measures.opened(self.same)

    @cached_property
    def state(self) -> int:
        """Bytes of `same`."""
        return sum(facts.bytes for facts in self.found.manifest.files.values())

    @property
    def index(self) -> int:
        """Bytes of its index."""
        return self.found.manifest.files[INDEX].bytes

    def merging(self) -> float:
        """CPU-seconds of rank 0 that merges the parts of all ranks into the index and opens it."""
        _ = self.parts  # made before the clock runs
        began = time.process_time()
        measures.opened(saved.commit(self.folder / "merged", self.network, self.parts))
        return time.process_time() - began

    def start(self, place: Path, stage: int = 3) -> float:
        """Bytes read in a start from weights or a checkpoint, in units of the weights.

        Under ZeRO-0 one rank reads each stretch for all: in sum what one rank by itself reads.
        """
        config = replace(self.network.config, init_from=str(place))
        network = replace(self.network, config=config)
        first = begun_from(config)
        ranks = self.ranks if stage == 3 else 1
        counts = measures.of_all(
            place, ranks, lambda rank: measures.start(network, first, stage, rank, ranks)
        )
        return counts.bytes / self.weights

    def drawn(self) -> float:
        """Random numbers that are drawn for first weights, in units of those that are needed."""
        drawn = measures.over(
            self.ranks, lambda rank: measures.drawn(self.network, 3, rank, self.ranks)
        )
        return drawn / measures.drawn(self.network, 0, 0, 1)

    def resume(self, before: int) -> Counts:
        """Of a resume from a checkpoint that `before` ranks wrote."""
        found = self.found
        if before != self.ranks:
            folder = self.folder / f"of-{before}"
            found = measures.opened(measures.checkpoint(folder, self.network, before))
        return measures.of_all(
            found.path,
            self.ranks,
            lambda rank: measures.resume(self.network, found, 3, rank, self.ranks),
        )

    def copies(self) -> tuple[int, int]:
        """Tensors and bytes that rank 0 copies in a save."""
        tensors = [
            tensor
            for piece in self.network.pieces(3, 0, self.ranks)
            for tensor in piece.tensors.values()
        ]
        return len(tensors), sum(tensor.nbytes for tensor in tensors)
