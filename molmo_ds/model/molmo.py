"""The network as one list of layers, the module made from it, and what the optimiser is told of its parameters.

Shapes: B sequences, T tokens, D width, E words of the head. Names of `layer_list` are state-dict prefixes, and its rows
are pipeline layers: each takes and returns a Carry, but the head, which returns the three sums of the loss.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from molmo_ds.architecture import MolmoConfig
from molmo_ds.batch import Batch, Carry
from molmo_ds.model import init
from molmo_ds.model.connector import Connector
from molmo_ds.model.decoder import DecoderLayer, Embed, Head
from molmo_ds.model.selection import Scorer, SelectionCore, look_ahead
from molmo_ds.model.vision import VisionEmbeddings, VisionLayer

Row = tuple[str, type[nn.Module], tuple]
# block i is recomputed where i % N is 0 (or is not); allenai/molmo 793fa38, olmo/model.py
ONE_IN = {"one_in_two": 2, "one_in_three": 3, "one_in_four": 4}
ALL_BUT_ONE_IN = {"two_in_three": 3, "three_in_four": 4}
CHECKPOINTING = ("none", "full", *ONE_IN, *ALL_BUT_ONE_IN, "vision", "offload")


def layer_list(config: MolmoConfig, z_loss: float = 1e-4) -> list[Row]:
    """Rows (name, class, arguments) in the order in which they run."""
    vision = config.vision
    text = config.text
    scorer = []
    if config.selection is not None:
        scorer = [("scorer", Scorer, (text, config.selection))]
    return [
        ("vision.embeddings", VisionEmbeddings, (vision, config.images)),
        *(
            (f"vision.layers.{i}", VisionLayer, (vision, i))
            for i in range(vision.num_hidden_layers)
        ),
        ("connector", Connector, (vision, config.connector, text)),
        ("embed", Embed, (text, config.zero_row, config.selection is not None)),
        *scorer,
        *((f"layers.{i}", DecoderLayer, (text, i)) for i in range(text.num_hidden_layers)),
        ("head", Head, (text, z_loss)),
    ]


class Molmo(nn.Module):
    """The whole network in one process' hands.

    Args:
        z_loss: factor of the z-loss.
        checkpointing: which rows are recomputed in the backward pass: none, full (every ViT block and decoder
            layer), one_in_two, two_in_three and so on (that share of them), vision, or offload (full; inputs are kept
            on the CPU).
    """

    def __init__(self, config: MolmoConfig, z_loss: float = 1e-4, checkpointing: str = "none"):
        super().__init__()
        if checkpointing not in CHECKPOINTING:
            raise ValueError(
                f"activation_checkpointing is '{checkpointing}'; use one of {', '.join(CHECKPOINTING)}."
            )
        self.config = config
        self.checkpointing = checkpointing
        self.rows = []
        for name, kind, arguments in layer_list(config, z_loss):
            parent = self
            layer = kind(*arguments)
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, nn.ModuleList() if part == "layers" else nn.Module())
                parent = getattr(parent, part)
            parent.add_module(leaf, layer)
            self.rows.append(name)
        if config.selection is not None:
            for layer in self.layers:
                layer.self_attn.core = SelectionCore(config.selection)
        if config.text.tie_word_embeddings:
            self.head.lm_head.weight = self.embed.embedding

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """(ce_sum, z_sum, accuracy_sum), float32 scalars weighted by `loss_weights`; the loss is ce_sum + z_sum."""
        x = self.body(batch)
        ce, z, accuracy = self.head(x)
        if x.selection_loss is None:
            return ce, z, accuracy
        # each batch's counts by its share of what is learnt, as its tokens do
        return ce, z + x.selection_loss * x.loss_weights.sum(), accuracy

    def body(self, batch: Batch) -> Carry:
        """Every row but the head."""
        x = Carry.of(batch)
        for name in self.rows[:-1]:
            if name == "scorer":
                x = look_ahead(self.layers, x, self.config)
            x = run_row(self.get_submodule(name), name, x, self.checkpointing)
        return x

    def hidden(self, batch: Batch) -> Tensor:
        """Hidden states [B, T, D] after the last norm."""
        return self.head.norm(self.body(batch).hidden)

    def logits(self, batch: Batch) -> Tensor:
        """Logits [B, T, E]."""
        return self.head.logits(self.body(batch).hidden)

    def reset_parameters(self, seed: int) -> None:
        """First weights; on the meta device call `to_empty` before."""
        init.reset_parameters(self, self.config, seed)


def run_row(layer: nn.Module, name: str, x: Carry, checkpointing: str) -> Any:
    """layer(x) for the row `name`, recomputed in the backward pass if `checkpointing` says so.

    Only `hidden` is saved for it, the one tensor that each row replaces. A ViT block after the last feature has none.
    """
    if not torch.is_grad_enabled() or not recomputed(name, checkpointing) or x.hidden is None:
        return layer(x)
    if isinstance(layer, DecoderLayer):
        x = layer.with_shared(x)  # here, so that it is not recomputed
    on_cpu = torch.autograd.graph.save_on_cpu(pin_memory=x.hidden.is_cuda)
    with on_cpu if checkpointing == "offload" else contextlib.nullcontext():
        return checkpoint(
            lambda hidden: layer(x._replace(hidden=hidden)), x.hidden, use_reentrant=False
        )


def recomputed(name: str, checkpointing: str) -> bool:
    """Whether the row `name` is recomputed in the backward pass."""
    if ".layers." not in f".{name}" or checkpointing == "none":
        return False
    if checkpointing == "vision":
        return name.startswith("vision.")
    number = int(name.rpartition(".")[2])
    if checkpointing in ONE_IN:
        return number % ONE_IN[checkpointing] == 0
    if checkpointing in ALL_BUT_ONE_IN:
        return number % ALL_BUT_ONE_IN[checkpointing] != 0
    return checkpointing in ("full", "offload")


def component(name: str) -> str:
    """The component ("connector", "vision" or "text") whose learning rate and clipping a parameter follows."""
    first = name.partition(".")[0]
    if name == "embed.new_embedding" or first == "scorer":
        return "connector"
    return first if first in ("connector", "vision") else "text"


def decays(name: str) -> bool:
    """Whether weight decay applies: not to embeddings, layer norms and layer scales; yes to biases and q/k norms."""
    parts = name.split(".")
    if parts[0] == "embed" or parts[-1] in (
        "class_embedding",
        "position_embedding",
        "layer_scale1",
        "layer_scale2",
    ):
        return False
    kept = parts[-2] in ("q_norm", "k_norm") or parts[0] == "scorer"
    return kept or "norm" not in parts[-2]


def is_hidden_matrix(name: str, parameter: Tensor) -> bool:
    """Whether it is one matrix from hidden width to hidden width, which Muon makes orthogonal.

    Tables, the head, the patch embedding and stacked experts are not.
    """
    part, _, rest = name.removeprefix("vision.").partition(".")
    inside = part == "layers" or (part == "connector" and rest != "pad_embed")
    return inside and parameter.dim() == 2


def parameter_groups(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, str, bool]]:
    """(name, parameter, component, decays) of every parameter, tied ones once."""
    for name, parameter in model.named_parameters():
        yield name, parameter, component(name), decays(name)
