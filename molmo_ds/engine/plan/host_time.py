"""Seconds of a micro-step, of the host and of the GPU: where the host's are more, a GPU waits for its next kernel.

The host's are by layer, whatever its width: CPU time of a whole step of a tiny network (docs/evidence/gpu.md), with its
products, so an upper end. The GPU's are those of its matrix products.
"""

from molmo_ds.config import RunConfig
from molmo_ds.engine.plan.plan_inference import Card
from molmo_ds.engine.strategy import Strategy
from molmo_ds.model.flops import flops_per_crop, flops_per_token

# seconds of the host for a layer, without ZeRO-3 and with it
LAYER = {False: 2.0e-3, True: 3.5e-3}
# the same where every layer is computed again
AGAIN = {False: 3.5e-3, True: 5.2e-3}


def of_host(config: RunConfig, strategy: Strategy) -> float:
    """Seconds that the host needs to hand a micro-step to the GPU."""
    layers = config.model.text.num_hidden_layers + config.model.vision.num_hidden_layers
    layer = AGAIN if config.activation_checkpointing in ("full", "offload") else LAYER
    return layers / strategy.stages * layer[strategy.stage == 3]


def of_gpu(config: RunConfig, strategy: Strategy, card: Card) -> float:
    """Seconds of a full micro-step's matrix products on one GPU."""
    tokens, crops = config.data.sequence_length, config.data.crops_per_sequence
    flops = tokens * flops_per_token(config.model, tokens) + crops * flops_per_crop(config.model)
    again = 4 / 3 if config.activation_checkpointing in ("full", "offload") else 1.0
    return config.micro_batch * flops * again / strategy.shared / card.flops


def told(config: RunConfig, strategy: Strategy, card: Card) -> str:
    """A sentence on the two, and what to do where the host's is the longer."""
    host, gpu = of_host(config, strategy), of_gpu(config, strategy, card)
    said = f"a micro-step: about {1e3 * gpu:.0f} ms of the GPU's products, {1e3 * host:.0f} ms of the host"
    if strategy.stage < 3 or host <= gpu:
        return f"{said}."
    return (
        f"{said}, which ZeRO-3 keeps busy with every layer: take zero1 or zero2 where they fit, or a micro_batch of "
        f"{-(-config.micro_batch * host // gpu):.0f}."
    )
