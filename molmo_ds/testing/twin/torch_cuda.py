"""torch.cuda on the twin, in place of what a CPU build lacks: devices, streams, events, memory, an H100's facts."""

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
from torch.cuda import _gpu_trace as trace

MEMORY = 80 * 2**30
PROPERTIES = {
    "name": "NVIDIA H100 80GB HBM3",
    "total_memory": MEMORY,
    "major": 9,
    "minor": 0,
    "multi_processor_count": 132,
    "warp_size": 32,
    "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048,
    "max_threads_per_block": 1024,
    "L2_cache_size": 50 * 2**20,
    "shared_memory_per_block": 49152,
    "shared_memory_per_block_optin": 232448,
    "shared_memory_per_multiprocessor": 233472,
    "clock_rate": 1_980_000,
    "memory_clock_rate": 2_619_000,
    "memory_bus_width": 5120,
    "is_integrated": False,
    "gcnArchName": "",
    "uuid": "twin",
}
library: ctypes.CDLL  # set by `install`
_numbers = itertools.count(1)
_defaults: dict[int, "Stream"] = {}
_streams: list["Stream"] = []  # those that `torch.cuda.stream` made current, the innermost last


def current_device() -> int:
    """The number of the current device."""
    return library.twin_get_device()


def index_of(device: Any = None) -> int:
    """The number of a device; None, and "cuda" without a number, is the current one."""
    if isinstance(device, int):
        return device
    index = None if device is None else torch.device(device).index
    return library.twin_get_device() if index is None else index


def set_device(device: Any) -> None:
    """torch.cuda.set_device, with CUDA's error for a device that is not there."""
    index = index_of(device)
    if index >= torch.cuda.device_count():
        raise RuntimeError("CUDA error: invalid device ordinal")
    if index >= 0:
        library.twin_set_device(index)


def exchange_device(index: int) -> int:
    """Make a device current (none if negative); the one before."""
    before = library.twin_get_device()
    if index >= 0:
        library.twin_set_device(index)
    return before


class Device:
    """torch.cuda.device."""

    def __init__(self, device: Any) -> None:
        self.index = -1 if device is None else index_of(device)

    def __enter__(self) -> None:
        self.before = exchange_device(self.index)

    def __exit__(self, *error: Any) -> None:
        exchange_device(self.before)


class Stream:
    """torch.cuda.Stream; what is put on it runs at once."""

    def __init__(self, device: Any = None, priority: int = 0, **more: Any) -> None:
        self.stream_id = next(_numbers)
        self.cuda_stream = self.stream_id
        self.device = torch.device("cuda", index_of(device))
        self.device_index = self.device.index
        self.device_type = 1
        self.priority = priority
        trace.StreamCreationCallbacks.fire_callbacks(self.cuda_stream)

    def synchronize(self) -> None:
        """Wait for it."""
        library.twin_wait()
        trace.StreamSynchronizationCallbacks.fire_callbacks(self.cuda_stream)

    def wait_stream(self, other: "Stream") -> None:
        """Order what comes after everything that is on another stream now."""
        self.wait_event(other.record_event())

    def wait_event(self, event: "Event") -> None:
        """Order what comes after an event."""
        event.wait(self)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """Mark what is on it now."""
        event = event or Event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Whether it is empty."""
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.stream_id == self.stream_id

    def __hash__(self) -> int:
        return self.stream_id


class Event:
    """torch.cuda.Event; every two are a millisecond apart."""

    def __init__(self, *flags: Any, **more: Any) -> None:
        self.number = next(_numbers)
        trace.EventCreationCallbacks.fire_callbacks(self.number)

    def record(self, stream: Stream | None = None) -> None:
        """Mark what is on a stream now."""
        trace.EventRecordCallbacks.fire_callbacks(self.number, _raw(stream))

    def wait(self, stream: Stream | None = None) -> None:
        """Let a stream wait for it."""
        trace.EventWaitCallbacks.fire_callbacks(self.number, _raw(stream))

    def query(self) -> bool:
        """Whether it has happened."""
        return True

    def synchronize(self) -> None:
        """Wait for it."""
        library.twin_wait()
        trace.EventSynchronizationCallbacks.fire_callbacks(self.number)

    def elapsed_time(self, other: "Event") -> float:
        """Milliseconds."""
        return 1.0


def _raw(stream: Stream | None) -> int:
    return (stream or current_stream()).cuda_stream


def default_stream(device: Any = None) -> Stream:
    """The stream 0 of a device."""
    index = index_of(device)
    if index not in _defaults:
        _defaults[index] = Stream(index)
        _defaults[index].cuda_stream = 0
    return _defaults[index]


def current_stream(device: Any = None) -> Stream:
    """The stream of the innermost `torch.cuda.stream`."""
    return _streams[-1] if _streams else default_stream(device)


@contextlib.contextmanager
def use_stream(stream: Stream | None) -> Iterator[None]:
    """torch.cuda.stream."""
    if stream is not None:
        _streams.append(stream)
    try:
        yield
    finally:
        if stream is not None:
            _streams.pop()


@contextlib.contextmanager
def late_copies() -> Iterator[None]:
    """Inside the block a copy that the host need not wait for happens when it waits.

    What it reads before is NaN, and `overwritten` counts what it wrote into memory that was still to be read.
    """
    library.twin_late(1)
    try:
        yield
    finally:
        library.twin_wait()
        library.twin_late(0)


def overwritten() -> int:
    """Pinned tensors that changed between a copy to the device and the next wait, since the process began."""
    return library.twin_overwritten()


def synchronize(device: Any = None) -> None:
    """Wait for a device."""
    library.twin_wait()
    trace.DeviceSynchronizationCallbacks.fire_callbacks()


def properties(device: Any = None) -> SimpleNamespace:
    """Those of an H100."""
    return SimpleNamespace(**PROPERTIES)


def nothing() -> Callable[..., None]:
    """A function that does nothing; a new one each time, since Dynamo keeps rules by function."""
    return lambda *args, **more: None


def tensor_cuda(self: Any, device: Any = None, non_blocking: bool = False, **more: Any) -> Any:
    """Tensor.cuda."""
    return self.to(torch.device("cuda", index_of(device)), non_blocking=non_blocking)


def module_cuda(self: Any, device: Any = None) -> Any:
    """Module.cuda."""
    return self.to(torch.device("cuda", index_of(device)))


def install(loaded: ctypes.CDLL) -> None:
    """Replace the names of torch.cuda and of torch's C module that ask CUDA."""
    global library
    library = loaded
    cuda = torch.cuda
    held = library.twin_bytes_held
    peak = library.twin_bytes_peak
    devices = library.twin_devices()
    generators = tuple(torch.default_generator for _ in range(devices))
    replaced = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_compiled": lambda: True,
        "_lazy_init": nothing(),
        "_lazy_call": lambda function, **more: function(),
        "init": nothing(),
        "device_count": lambda: devices,
        "current_device": current_device,
        "set_device": set_device,
        "device": Device,
        "_exchange_device": exchange_device,
        "_maybe_exchange_device": lambda index: exchange_device(index),
        "is_bf16_supported": lambda *args, **more: True,
        "Stream": Stream,
        "Event": Event,
        "default_stream": default_stream,
        "current_stream": current_stream,
        "stream": use_stream,
        "set_stream": nothing(),
        "synchronize": synchronize,
        "get_device_properties": properties,
        "get_device_name": lambda device=None: PROPERTIES["name"],
        "get_device_capability": lambda device=None: (PROPERTIES["major"], PROPERTIES["minor"]),
        "get_arch_list": lambda: ["sm_90"],
        "memory_stats": lambda device=None: {},
        "mem_get_info": lambda device=None: (MEMORY - held(), MEMORY),
        "empty_cache": nothing(),
        "ipc_collect": nothing(),
        "manual_seed": nothing(),
        "manual_seed_all": nothing(),
        "initial_seed": lambda: torch.initial_seed(),
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        "default_generators": generators,
        "_is_in_bad_fork": lambda: False,
        "is_current_stream_capturing": lambda: False,
        "set_sync_debug_mode": nothing(),
    }
    for name in ("memory_allocated", "memory_reserved", "memory_cached"):
        replaced[name] = lambda device=None: held()
        replaced[f"max_{name}"] = lambda device=None: peak()
    for name in ("peak_memory_stats", "max_memory_allocated", "max_memory_cached"):
        replaced[f"reset_{name}"] = lambda device=None: library.twin_reset_peak()
    for name, value in replaced.items():
        setattr(cuda, name, value)
    cuda.nccl.version = lambda: (2, 28, 3)
    for name in ("range_push", "range_pop", "mark"):
        setattr(cuda.nvtx, name, lambda *args: 0)
    torch.version.cuda = "13.0"
    torch.Tensor.record_stream = nothing()
    torch.Tensor.cuda = tensor_cuda
    torch.nn.Module.cuda = module_cuda
    torch._C._get_accelerator = lambda *args: torch.device("cuda")
    torch._C._cuda_getDevice = lambda: library.twin_get_device()
    torch._C._cuda_getCurrentRawStream = lambda device: _raw(None)
    torch._C._cuda_isCurrentStreamCapturing = lambda: False
