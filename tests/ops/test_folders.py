"""An op is a folder: its reference stands alone with the public arguments, and its choice does not see a batch."""

import ast
import importlib
import inspect
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from molmo_ds import ops
from molmo_ds.ops import cpu_library, dispatch
from molmo_ds.ops.tree_attention import attention_plan, cpu, tree_attention

FOLDER = Path(ops.__file__).parent
OPS = sorted(path.parent.name for path in FOLDER.glob("*/__init__.py"))


def test_every_folder_is_seen() -> None:
    assert len(OPS) == 13
    for name in OPS:
        assert (FOLDER / name / "reference.py").is_file(), name


@pytest.mark.parametrize("name", OPS)
def test_a_reference_takes_the_public_arguments(name: str) -> None:
    """Exported folders call the reference where the package calls the public function."""
    public = importlib.import_module(f"molmo_ds.ops.{name}")
    reference = importlib.import_module(f"molmo_ds.ops.{name}.reference")
    functions = [
        f
        for _, f in inspect.getmembers(public, inspect.isfunction)
        if f.__module__ == public.__name__
    ]
    functions = [f for f in functions if not f.__name__.startswith("_")]
    assert functions
    for function in functions:
        wanted = list(inspect.signature(function).parameters.values())
        given = list(inspect.signature(getattr(reference, function.__name__)).parameters.values())
        assert given == wanted[: len(given)], function.__name__
        more = [parameter.name for parameter in wanted[len(given) :]]
        assert more == (["group"] if name == "weighted_cross_entropy" else []), (
            "only ranks know a group"
        )


@pytest.mark.parametrize("name", OPS)
def test_a_reference_knows_no_faster_implementation(name: str) -> None:
    tree = ast.parse((FOLDER / name / "reference.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module]
        else:
            continue
        for module in modules:
            plain = module.split(".")[0] in ("torch", *sys.stdlib_module_names)
            other_op = module.startswith("molmo_ds.ops.") and module.split(".")[2:] in [
                [other] for other in OPS
            ]
            assert plain or other_op, f"{name}/reference.py imports {module}"


class Sizes:
    """A shape whose first size, which a batch decides, cannot be read."""

    def __init__(self, *rest: int):
        self.rest = rest

    def __getitem__(self, index: int) -> int:
        assert isinstance(index, int) and index != 0, "the size of a batch decides"
        return self.rest[index - 1 if index > 0 else index]


class Blind:
    """A tensor of a batch of which only device, type and the sizes that the configuration fixes are seen."""

    def __init__(self, device: str, dtype: torch.dtype, *rest: int):
        self.device = torch.device(device)
        self.dtype = dtype
        self.is_cuda = device == "cuda"
        self.shape = Sizes(*rest)

    def element_size(self) -> int:
        return self.dtype.itemsize


def arguments(device: str) -> dict[str, list]:
    """What each op that has parameters, or is not listed in FREE, is asked with."""

    def x(*rest: int, dtype: torch.dtype = torch.float32) -> Blind:
        return Blind(device, dtype, *rest)

    ids = x(dtype=torch.int64)
    return {
        "adamw": [x(), x(), x(), x(), 1, 1e-3, (0.9, 0.95), 1e-6, 0.0, 1.0],
        "linear": [x(8), x(8), x()],
        "rms_norm": [x(8), x(), 1e-6],
        "rope": [x(2, 5, 8), x(5, 8), x(5, 8)],
        "swiglu": [x(8), x(8)],
        "quick_gelu": [x(8)],
        "experts": [x(8), x(4), x(16, 8), x(8, 8), 2, True],
        "normalise_patches": [x(28, 28, 3, dtype=torch.uint8), (0.5,) * 3, (0.5,) * 3, 14],
        "splice": [ids, x(8), x(8), x(8), ids],
        "gather_patches": [[x(5, 8), x(5, 8)], x(4, 2), x(16), ids, False],
        "pool_patches": [x(2, 8), x(4, 2, 8), x(4, 2, 8), ids, False],
        "weighted_cross_entropy": [x(8), x(8), ids, x(), 1e-4, (True, True), torch.float32],
    }


# ops without parameters that choose by sizes: see ops/dispatch.py
FREE = {"attention_plan", "cached_attention", "tree_attention", "write_cache"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_sizes_of_a_batch_choose_no_implementation(device: str) -> None:
    given = arguments(device)
    assert given.keys() | FREE == dispatch._table.keys()
    asked = 0
    for op, args in given.items():
        for _, usable in dispatch._table[op].values():
            assert usable(*args) in (True, False)
            asked += usable is not dispatch.always
    assert asked >= 2, "nothing but references"


def test_a_choice_by_sizes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    planted = {
        "torch": (None, dispatch.always),
        "cpu": (None, lambda x, weight, bias: x.shape[0] > 100),
    }
    monkeypatch.setitem(dispatch._table, "linear", planted)
    with pytest.raises(AssertionError, match="the size of a batch decides"):
        test_the_sizes_of_a_batch_choose_no_implementation("cpu")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_attention_may_choose_by_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its ways on the CPU leaves the projections' gradients in one order."""
    whole = order_of_gradients([40], faster=False, each_document=False)
    assert len(whole) == 8
    for lengths in ([13] * 20, [300]):  # by our own kernels
        assert order_of_gradients(lengths, faster=True, each_document=False) == whole
    monkeypatch.setattr(cpu_library, "load", lambda: None)
    assert order_of_gradients([13] * 20, faster=False, each_document=True) == whole
    assert order_of_gradients([300], faster=True, each_document=False) == whole


def order_of_gradients(lengths: list[int], faster: bool, each_document: bool) -> list[str]:
    """Names of four projections' parameters as their gradients arrive, for documents of these lengths."""
    document = torch.repeat_interleave(torch.arange(len(lengths)) + 1, torch.tensor(lengths))[None]
    plan = attention_plan(document, torch.zeros_like(document), torch.float32)
    layers = {
        "q": nn.Linear(16, 32),
        "k": nn.Linear(16, 16),
        "v": nn.Linear(16, 16),
        "o": nn.Linear(32, 16),
    }
    network = nn.ModuleDict(layers)
    order: list[str] = []
    for name, parameter in network.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    x = torch.randn(1, document.shape[1], 16)
    q, k, v = (network[name](x).unflatten(2, (-1, 8)).transpose(1, 2) for name in "qkv")
    assert cpu.usable(q, k, v, plan, 0.0) == faster
    assert (plan.lengths is not None) == each_document
    network["o"](tree_attention(q, k, v, plan).transpose(1, 2).flatten(2)).sum().backward()
    return order
