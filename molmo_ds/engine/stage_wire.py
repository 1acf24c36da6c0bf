"""A Carry as the flat tuple of tensors that DeepSpeed's pipeline sends from stage to stage.

DeepSpeed sends a gradient back for each float of the tuple, so the batch's floats, which have none, travel as int32.
What is None is not sent, nor is `shared`, which each stage makes for itself. The first tensor is the layout, which says
what the others are. It is the same in every step, so a stage reads it only once: on a GPU, reading waits.
"""

from dataclasses import fields

import torch
from torch import Tensor

from molmo_ds.batch import Batch, Carry, Shared

OF_BATCH = {field.name for field in fields(Batch)}  # data: no gradient


class Wire:
    """One end of a stage."""

    def __init__(self) -> None:
        # (index of the field, whether it travels as int32) of each tensor
        self.layout: list[list[int]] | None = None
        self.layout_tensor: Tensor | None = None

    def pack(self, x: Carry) -> tuple[Tensor, ...]:
        """The layout, int32 [tensors, 2], and the tensors."""
        layout = []
        flat = []
        for index, (name, value) in enumerate(zip(x._fields, x)):
            if value is None or isinstance(value, Shared):
                continue
            for tensor in value if isinstance(value, tuple) else (value,):
                viewed = name in OF_BATCH and tensor.is_floating_point()
                assert not viewed or tensor.dtype == torch.float32, f"{name} is {tensor.dtype}"
                layout.append([index, int(viewed)])
                flat.append(tensor.view(torch.int32) if viewed else tensor)
        if self.layout_tensor is None:
            self.layout = layout
            self.layout_tensor = torch.tensor(layout, dtype=torch.int32, device=flat[0].device)
        assert layout == self.layout, "what flows between two stages has changed"
        return self.layout_tensor, *flat

    def unpack(self, flat: tuple[Tensor, ...]) -> Carry:
        """The Carry that was packed, without `shared`."""
        if self.layout is None:
            self.layout = flat[0].tolist()
        found: dict[str, Tensor | tuple[Tensor, ...]] = {}
        for (index, viewed), tensor in zip(self.layout, flat[1:], strict=True):
            name = Carry._fields[index]
            tensor = tensor.view(torch.float32) if viewed else tensor
            several = isinstance(Carry._field_defaults[name], tuple)
            found[name] = (*found.get(name, ()), tensor) if several else tensor
        return Carry(**found)
