"""Whether a run learns the embedding of <im_patch>, or keeps it at zero, which its configuration may leave open."""

from dataclasses import replace

from molmo_ds import files
from molmo_ds.config import RunConfig
from molmo_ds.weights import checkpoint
from molmo_ds.weights.source import NO_FILE, open_source


def resolved(config: RunConfig) -> RunConfig:
    """The configuration with `model.connector.patch_row` decided.

    A run that is resumed keeps its own; weights that it begins with decide next (released ones learnt that row); a run
    from nothing keeps the row at zero, so that vLLM, which replaces it by the picture's features, answers as we do.
    """
    if config.model.connector.patch_row != "auto":
        return config
    own = _of_own_run(config)
    if own is not None:
        chosen = own
    elif config.init_from is not None:
        begun = open_source(config.init_from, *NO_FILE).config.model.connector.patch_row
        chosen = "zero" if begun == "zero" else "learnt"
    else:
        chosen = "zero"
    connector = replace(config.model.connector, patch_row=chosen)
    return replace(config, model=replace(config.model, connector=connector))


def _of_own_run(config: RunConfig) -> str | None:
    """What the run in `out` has, if this one resumes it; None for a file that is refused later."""
    out = files.place(config.out)
    if not config.resume or config.overwrite or not (out / "config.yaml").is_file():
        return None
    try:
        return checkpoint.read_config(out).model.connector.patch_row
    except ValueError:
        return None
