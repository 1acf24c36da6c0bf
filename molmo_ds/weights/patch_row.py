"""Whether a run learns the embedding of <im_patch>, or keeps it at zero, which its configuration may leave open."""

from dataclasses import replace
from pathlib import Path

from molmo_ds.config import RunConfig
from molmo_ds.weights import checkpoint
from molmo_ds.weights.source import NO_FILE


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with `model.connector.patch_row` decided.

    A run that goes on keeps its own; weights that it begins with decide next (released ones learnt that row); a run
    from nothing keeps the row at zero, so that vLLM, which replaces it by the picture's features, answers as we do.
    """
    if config.model.connector.patch_row != "auto":
        return config
    own = Path(config.out) / "config.yaml"
    if config.resume and not config.overwrite and own.is_file():
        chosen = checkpoint.read_config(Path(config.out)).model.connector.patch_row
    elif config.init_from is not None:
        folder = checkpoint.find(config.init_from, *NO_FILE)
        begun = checkpoint.read_config(folder).model.connector.patch_row
        chosen = "zero" if begun == "zero" else "learnt"
    else:
        chosen = "zero"
    connector = replace(config.model.connector, patch_row=chosen)
    return replace(config, model=replace(config.model, connector=connector))
