"""What vLLM makes of an exported folder, which runs a network of its own."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from molmo_ds.model import families
from molmo_ds.model.families import molmo_names
from molmo_ds.model.families.molmo import OWN
from molmo_ds.model.init import row_of
from molmo_ds.weights import released_config
from molmo_ds.weights.tensor_files import TensorFolder

AROUND = 64  # rows on each side of the embedding of <im_patch> that its norm is compared with
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
    row_in = {name: row_of(config, name, config.patch_token) for name in EMBEDDINGS}
    [(name, row)] = [(name, row) for name, row in row_in.items() if row is not None]
    [rule] = [rule for rule in molmo_names.released(config) if rule.ours == (name,)]
    [key] = rule.theirs
    weights = TensorFolder(folder)
    first, end = rows_around(row, weights.shape(key)[0])
    patch_norm, word_norm = patch_and_word_norm(weights.rows(key, first, end), row - first)
    return InVLLM(refusal=refusal, patch_norm=patch_norm, word_norm=word_norm)


def rows_around(row: int, count: int) -> tuple[int, int]:
    """[first, end) of the rows around one, in a table of `count`."""
    first = max(row - AROUND, 0)
    return first, min(first + 2 * AROUND, count)


def patch_and_word_norm(rows: Tensor, patch: int) -> tuple[float, float]:
    """The norm of one of the rows [n, D], that of <im_patch>, and the mean norm of all."""
    norms = rows.float().norm(dim=1)
    return float(norms[patch]), float(norms.mean())
