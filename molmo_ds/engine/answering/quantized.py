"""Weight-only INT8 and FP8 of the decoder's matrices, by torchao (extra `quantized`).

Products still run in the type of the activations. Embedding, head, norms, biases and the ViT stay as they are.
"""

import importlib.util
from collections.abc import Sequence

from torch import nn

from molmo_ds.architecture import MolmoConfig
from molmo_ds.model.decoder import DecoderLayer
from molmo_ds.model.linear import Linear


def check(config: MolmoConfig, weights: str | None) -> None:
    """Raise ValueError where torchao is missing, and for experts, whose fused weights it does not take."""
    if weights and config.text.num_experts:
        raise ValueError(
            f"weights={weights} cannot hold the fused weights of experts; leave it out for this model."
        )
    if weights and importlib.util.find_spec("torchao") is None:
        raise ValueError(
            f"weights={weights} needs torchao; install it with: pip install 'molmo_ds[quantized]'."
        )


def quantize(layers: Sequence[nn.Module], weights: str) -> None:
    """Replace the weights of all Linear modules of the decoder layers among `layers`, one by one and in place.

    Args:
        weights: "int8": a whole number of -128 to 127 times a scale for each row; "fp8": E4M3 likewise.
    """
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[weights]()
    for layer in layers:
        if isinstance(layer, DecoderLayer):
            quantize_(layer, config, filter_fn=_is_matrix)


def _is_matrix(module: nn.Module, name: str) -> bool:
    return isinstance(module, Linear)
