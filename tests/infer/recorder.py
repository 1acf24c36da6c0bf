"""CUDA graphs without a GPU: the operators of a decode step are recorded and run again on the memory that they had."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Recorded(TorchDispatchMode):
    """What a CUDA graph is, on the CPU: the operators with the very tensors they had; the host's numbers are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict, Any]] = []
        self.replays = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Each operator again, its result into the memory of the first one."""
        self.replays += 1
        for function, args, kwargs, old in self.calls:
            new = function(*args, **kwargs)
            if function.namespace == "c10d":
                new[-1].wait()
            if function.is_view or function._schema.is_mutable or function.namespace == "c10d":
                continue
            pairs = zip(old, new) if isinstance(old, (tuple, list)) else [(old, new)]
            for before, after in pairs:
                if isinstance(before, Tensor) and before.data_ptr() != after.data_ptr():
                    before.copy_(after)


class Recorder:
    """Captures on the CPU; warms up as on a GPU."""

    def __init__(self) -> None:
        self.graphs: list[Recorded] = []

    def __call__(self, work: Callable[[], Tensor]) -> tuple[Recorded, Tensor]:
        """Run twice, then record."""
        work()
        work()
        self.graphs.append(Recorded())
        with self.graphs[-1]:
            out = work()
        return self.graphs[-1], out
