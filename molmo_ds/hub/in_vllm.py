"""What vLLM makes of an exported folder, which runs a network of its own."""

from dataclasses import dataclass
from pathlib import Path

from molmo_ds.model import families
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.molmo import OWN
from molmo_ds.model.init import row_of
from molmo_ds.weights import released_config
from molmo_ds.weights.tensor_files import TensorFolder

NEAR = 64  # rows of a table on each side of one
VLLM_START = "<|endoftext|>"  # after which vLLM's Molmo puts a picture
EMBEDDINGS = ("embed.embedding", "embed.new_embedding")


@dataclass(frozen=True, kw_only=True)
class InVLLM:
    """What vLLM makes of an exported folder."""

    refusal: str | None  # why it cannot serve it
    patch_norm: float  # of the embedding of <im_patch>
    word_norm: float  # the mean of the rows near it

    def __str__(self) -> str:
        if self.refusal:
            return f"vLLM cannot serve it: {self.refusal}."
        if not self.patch_norm:
            return "vLLM can serve it."
        return (
            "vLLM can serve it, with other answers about pictures: it puts a picture's features in the place of the"
            f" embedding of <im_patch>, to which Molmo adds them, and that has norm {self.patch_norm:.3g} (rows near"
            f" it: {self.word_norm:.3g}). The connector ends in a matrix without bias, so nothing can take the row"
            " over; a run with model.connector.patch_row=zero keeps it at zero."
        )


def read(folder: Path) -> InVLLM | None:
    """What `to_hub` said of a folder that it wrote, but for its tokenizer; None for a folder of others.

    Raises ValueError for a damaged one.
    """
    if OWN not in released_config.read_json(folder):
        return None
    config = released_config.read(folder)
    refusal = families.format_of(config).not_servable(config)
    (name,) = (name for name in EMBEDDINGS if row_of(config, name, config.patch_token) is not None)
    (key,) = (rule.theirs[0] for rule in molmo_names.released(config) if rule.ours == (name,))
    row = row_of(config, name, config.patch_token)
    weights = TensorFolder(folder)
    first = max(row - NEAR, 0)
    rows = weights.rows(key, first, min(first + 2 * NEAR, weights.shape(key)[0]))
    norms = rows.float().norm(dim=1)
    return InVLLM(
        refusal=refusal, patch_norm=float(norms[row - first]), word_norm=float(norms.mean())
    )
