"""A strategy that is asked for, for a run on so many ranks: what the refusals look at."""

from dataclasses import dataclass

from molmo_ds.architecture import TextConfig
from molmo_ds.config import RunConfig
from molmo_ds.engine.strategy import Owned, Strategy, Zero


@dataclass(frozen=True)
class Asked:
    """A strategy for a run on `world` ranks, and what follows from the three."""

    s: Strategy
    run: RunConfig
    world: int

    @property
    def text(self) -> TextConfig:
        """The decoder."""
        return self.run.model.text

    @property
    def zero(self) -> Zero:
        """The block zero_optimization."""
        return self.s.zero

    @property
    def owned(self) -> Owned:
        """The file's values of settings that the run owns."""
        return self.s.owned

    @property
    def pipeline(self) -> bool:
        """Whether it asks for pipeline stages."""
        return self.s.engine == "pipeline"

    @property
    def micro_batches(self) -> int:
        """Micro-batches that a pipeline gets in a step."""
        return self.run.global_batch * self.s.stages // (self.world * self.run.micro_batch)

    @property
    def ranks(self) -> int:
        """Ranks that share a stage."""
        return self.world // self.s.stages

    @property
    def replicas(self) -> int:
        """Parts of the global batch that are read."""
        return self.s.data_parallel_size(self.world)

    @property
    def multiple(self) -> int:
        """Sequences of a micro-step of all ranks."""
        return self.replicas * self.run.micro_batch

    @property
    def accumulation(self) -> int:
        """Micro-steps of a step."""
        return self.run.global_batch // self.multiple

    @property
    def training(self) -> str:
        """The strategy to train with that is nearest to one to answer with."""
        if self.text.num_experts:
            return "zero3_ep.json"
        return "pipe_zero1.json" if self.s.stages > 1 else "zero3_tp.json"

    def heads_divide(self) -> bool:
        """Whether ranks that share a sequence can share its heads."""
        heads = self.text.num_attention_heads
        keys = self.text.num_key_value_heads
        size = self.s.sequence
        return heads % size == 0 and (keys % size == 0 or size % keys == 0)

    def columns_divide(self) -> bool:
        """Whether ranks that share the decoder hold equal parts of it; experts are not cut."""
        text = self.text
        inner = 0 if text.num_experts else text.intermediate_size
        return not any(
            size % self.s.tensor
            for size in (text.num_attention_heads, text.num_key_value_heads, inner)
        )
