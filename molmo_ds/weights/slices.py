"""A rank's slices of a model: read from a folder of any kind in blocks of rows, and nothing else is held."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from tqdm import tqdm

from molmo_ds.files import Remote
from molmo_ds.weights.source import Source, compare
from molmo_ds.weights.tensor_files import check_numbers

BLOCK = 8 << 20  # bytes of float32 rows that are read at once
REMOTE_BLOCK = 256 << 20  # the same of a store, which answers several requests as fast as one
Cut = tuple[slice, ...]  # what a rank holds of a whole tensor, by dimension; () = all


def fill(
    module: nn.Module,
    source: Source,
    cuts: Mapping[str, Cut] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    part: int = 0,
    parts: int = 1,
    by_columns: Collection[str] = (),
) -> None:
    """Give every parameter of a module on the meta device its numbers.

    The module may be one stage of the model, or a thinner one: its parameters have our names.

    Args:
        cuts: by name what this rank holds of a tensor, where it does not hold all.
        dtype: None takes the parameter's.
        part, parts: this rank's number among those that read the folder; each begins at another tensor.
        by_columns: matrices that shall lie in memory column by column.

    Raises ValueError for a tensor that is not there, has another shape, or holds a number that is not finite. It may do
    so on one rank alone: call it through `World.together`.
    """
    parameters = list(module.named_parameters(remove_duplicate=False))
    begin = len(parameters) * part // parts
    for name, parameter in tqdm(
        parameters[begin:] + parameters[:begin], "weights", leave=False, disable=part > 0
    ):
        own = read_slice(
            source,
            name,
            (cuts or {}).get(name, ()),
            dtype or parameter.dtype,
            device,
            name in by_columns,
        )
        compare(source.path, name, list(own.shape), list(parameter.shape))
        put(module, name, nn.Parameter(own, requires_grad=parameter.requires_grad))


def put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Replace a parameter, which may be on the meta device, by another of its name."""
    path, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(path), leaf, parameter)


def read_slice(
    source: Source,
    name: str,
    cut: Cut,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    by_columns: bool = False,
) -> Tensor:
    """This rank's slice of a tensor, on its device; a matrix may lie there column by column."""
    shape = source.shapes.get(name)
    if shape is None:
        raise ValueError(
            f"{source.path} has no tensor '{name}'; it belongs to another architecture."
        )
    first, last, _ = (cut[0] if cut else slice(None)).indices(shape[0])
    inner = (slice(None), *cut[1:])
    with torch.device("meta"):
        size = torch.empty(shape)[cut].shape
    own = torch.empty(size[::-1] if by_columns else size, dtype=dtype, device=device)
    own = own.T if by_columns else own
    row = 4 * torch.Size(shape[1:]).numel()
    block_bytes = REMOTE_BLOCK if isinstance(source.path, Remote) else BLOCK
    step = max(1, block_bytes // max(row, 1))
    for start in range(first, last, step):
        stop = min(start + step, last)
        block = source.rows(name, start, stop)[inner]
        check_numbers(source.file(name), name, block)
        own[start - first : stop - first].copy_(block)
    return own
