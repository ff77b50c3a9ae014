"""A pretend GPU: tensors that say they are on cuda:0 and are computed on the CPU.

Inside a block of `PretendCuda` new tensors with `device="cuda"` are `PretendTensor`s. Every operation on them is
recorded: waits of the host for the device, copies, attention calls, and operations that mix devices. Copies to
the host and on side streams that do not block run as late as a GPU might run them: when somebody waits for them.
"""

from __future__ import annotations

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

from headatlas.pipeline.calls.lazy_mask import TiledMask

CUDA = torch.device("cuda", 0)
_DATA_DEPENDENT = ("nonzero", "masked_select", "unique_consecutive", "_unique2", "unique_dim", "bincount", "equal")
"""Operations whose result, or its shape, the host has to know."""


class PretendTensor(torch.Tensor):
    """A tensor that says it is on cuda:0. `numbers` are its values on the CPU."""

    numbers: Tensor
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: Tensor) -> PretendTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device="meta",
        )
        tensor.numbers = numbers
        return tensor

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"PretendTensor{tuple(self.shape)}"

    def tolist(self) -> Any:
        assert PretendCuda.current is not None
        PretendCuda.current.wait("number")
        return self.numbers.tolist()

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert PretendCuda.current is not None, f"{function} runs outside of a block of PretendCuda"
        return PretendCuda.current.run(function, args, kwargs or {})


@dataclass(eq=False)
class Stream:
    """A stream whose copies run when somebody waits for them. The current stream runs at once."""

    device: object = None
    pending: list[Callable[[], None]] = field(default_factory=list)

    def run(self, n: int | None = None) -> None:
        """Run the first `n` copies, or all."""
        copies, self.pending[:] = self.pending[:n], self.pending[len(self.pending[:n]) :]
        for copy in copies:
            copy()

    def wait_stream(self, other: Stream) -> None:
        """Order later work of this stream after the work of another one."""
        other.run()

    def wait_event(self, event: Event) -> None:
        """Order later work of this stream after an event."""
        event.synchronize()

    def synchronize(self) -> None:
        """Wait for the stream."""
        self.run()


class Event:
    """A point in a stream."""

    def __init__(self, *_: object, **__: object) -> None:
        self._copies: list[Callable[[], None]] = []
        self._stream: Stream | None = None

    def record(self, stream: Stream | None = None) -> None:
        """Set the point to the end of a stream's work."""
        assert PretendCuda.current is not None
        self._stream = stream or PretendCuda.current.stream
        self._copies = list(self._stream.pending)

    def synchronize(self) -> None:
        """Wait for the point."""
        if self._stream is not None:
            pending = self._stream.pending
            self._stream.run(max((pending.index(copy) + 1 for copy in self._copies if copy in pending), default=0))

    wait = synchronize

    def query(self) -> bool:
        """Return True if the point is reached."""
        return self._stream is None or not any(copy in self._stream.pending for copy in self._copies)


class PretendCuda(TorchDispatchMode):
    """The pretend GPU and what it recorded.

    `waits` counts by kind and by the line of headatlas or transformers that waits. `mixed` are operations on tensors of
    two devices, and `unpinned` are copies that would not block if the host's memory were pinned. With `copies_at_once`
    copies run as early as a GPU might run them.
    """

    current: PretendCuda | None = None

    def __init__(self, total_memory: int = 80 << 30) -> None:
        super().__init__()
        self.total_memory = total_memory
        self.waits: Counter[tuple[str, str]] = Counter()
        self.copies: Counter[str] = Counter()
        self.mixed: list[tuple[str, str]] = []
        self.unpinned: list[str] = []
        self.n_sdpa = 0
        self.copies_at_once = False
        self.stream = self.default_stream = Stream()
        self._pinned: dict[int, torch.UntypedStorage] = {}

    def reset(self) -> None:
        """Forget what was recorded."""
        self.waits.clear()
        self.copies.clear()
        self.mixed.clear()
        self.unpinned.clear()
        self.n_sdpa = 0

    @property
    def n_waits(self) -> int:
        """Number of waits of the host."""
        return self.waits.total()

    def to_device(self, module: torch.nn.Module) -> None:
        """Move the parameters and buffers of a model to the pretend GPU."""
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    part._parameters[name] = torch.nn.Parameter(PretendTensor(parameter.data), requires_grad=False)
            for name, buffer in list(part._buffers.items()):
                if buffer is not None:
                    part._buffers[name] = PretendTensor(buffer)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # masks that are functions compute their values on the device
            args, kwargs = tree_map(_dense, args), tree_map(_dense, kwargs or {})
        on_device = any(isinstance(value, PretendTensor) for value in tree_flatten((args, kwargs))[0])
        device = kwargs.get("device")
        # The C++ code of torch takes the tensors for tensors on "meta", and makes their scalars there.
        is_scalar = function is torch.ops.aten.scalar_tensor.default and str(device) == "meta"
        if on_device or is_scalar or (device is not None and torch.device(device).type == "cuda"):
            return self.run(function, args, kwargs)
        pinned = kwargs.pop("pin_memory", False)
        result = function(*args, **kwargs)
        if not pinned:
            return result
        result.untyped_storage().fill_(0x55)  # numbers that nobody wrote
        return self.pin(result)

    def pin(self, tensor: Tensor) -> Tensor:
        """Record that the memory of a tensor is pinned."""
        storage = tensor.untyped_storage()
        self._pinned[storage.data_ptr()] = storage
        return tensor

    def is_pinned(self, tensor: Tensor) -> bool:
        """Return True if the memory of a tensor is pinned, also of a view or of an array that shares it."""
        start = tensor.data_ptr()
        return any(
            first <= start and start + tensor.nbytes <= first + storage.nbytes()
            for first, storage in self._pinned.items()
        )

    def run(self, function: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation of which a tensor is on the device, or its result."""
        if function is torch.ops.prim.device.default:
            return CUDA
        name = function.overloadpacket.__name__
        tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        on_device = [value for value in tensors if isinstance(value, PretendTensor)]
        on_host = [value for value in tensors if not isinstance(value, PretendTensor)]
        host_args, host_kwargs = tree_map(_numbers, args), dict(tree_map(_numbers, kwargs))
        device = host_kwargs.pop("device", None)
        if device is not None:
            host_kwargs["device"] = "cpu"
            host_kwargs.pop("pin_memory", None)
        is_result_on_device = _is_cuda(device) if device is not None else bool(on_device)
        if name == "_local_scalar_dense":
            self.wait("number")
        elif name in _DATA_DEPENDENT or (name.startswith("index") and _has_boolean_index(args)):
            self.wait(name)
        elif name == "copy_" and isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor):
            return self._copy(args, kwargs)
        elif name == "_to_copy" and is_result_on_device != bool(on_device):
            host = host_args[0]
            self._transfer(not is_result_on_device, host, is_blocking=not kwargs.get("non_blocking", False))
        if on_device and name not in ("copy_", "set_"):
            mixed = [value for value in on_host if value.dim() > 0]
            if name in ("index", "index_put_", "index_put"):  # torch accepts indices on the host, and copies them
                for _ in mixed:
                    self.wait("index on the host")
            elif mixed:
                self.mixed.append((name, _place()))
        with _disable_current_modes():
            if name == "histc":  # a CPU counts no whole numbers
                result = function(host_args[0].float(), *host_args[1:], **host_kwargs).to(host_args[0].dtype)
            else:
                result = function(*host_args, **host_kwargs)
        if name == "_local_scalar_dense" or not is_result_on_device:
            return result
        wrapped = {id(value.numbers): value for value in on_device}
        return tree_map(lambda value: _wrap(value, wrapped), result)

    def _copy(self, args: Any, kwargs: Any) -> Tensor:
        target, source, *options = args
        is_blocking = not (options[0] if options else kwargs.get("non_blocking", False))
        to_host = isinstance(source, PretendTensor)
        if to_host and self.stream is self.default_stream:
            with _disable_current_modes():  # later operations of the stream may change the source
                source = PretendTensor(source.numbers.clone())
        self._transfer(to_host, target if to_host else source, is_blocking)

        def copy() -> None:
            with _disable_current_modes():
                _numbers(target).copy_(_numbers(source))

        if is_blocking or self.copies_at_once or (not to_host and self.stream is self.default_stream):
            copy()
        else:
            self.stream.pending.append(copy)
        return target

    def _transfer(self, to_host: bool, host: Tensor, is_blocking: bool) -> None:
        """Record one copy between host and device."""
        direction = "to host" if to_host else "to device"
        self.copies[direction] += 1
        if is_blocking:
            self.wait(f"copy {direction}")
        elif not self.is_pinned(host):
            self.unpinned.append(_place())

    def wait(self, kind: str) -> None:
        """Record a wait of the host."""
        self.waits[kind, _place()] += 1


class InterpretedKernel:
    """Triton's kernel in the interpreter, on the numbers of pretend tensors."""

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(*arguments: object, **keywords: object) -> None:
            values = [argument for argument in arguments if isinstance(argument, Tensor)]
            assert all(isinstance(value, PretendTensor) for value in values), "an argument is not on the device"
            with _disable_current_modes():
                self._kernel[grid](*map(_numbers, arguments), **keywords)

        return launch


def _is_cuda(device: object) -> bool:
    """Return True for the pretend GPU, also by the name that the C++ code of torch has for it."""
    return device is not None and torch.device(device).type in ("cuda", "meta")  # type: ignore[call-overload]


def _dense(value: object) -> object:
    return value.dense() if isinstance(value, TiledMask) else value


def _numbers(value: object) -> object:
    return value.numbers if isinstance(value, PretendTensor) else value


def _wrap(value: object, wrapped: dict[int, PretendTensor]) -> object:
    if not isinstance(value, Tensor) or isinstance(value, PretendTensor):
        return value
    same = wrapped.get(id(value))  # the result of an operation in place
    return PretendTensor(value) if same is None else same


def _has_boolean_index(args: Any) -> bool:
    indices = args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()
    return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _place() -> str:
    """Return file and line of the innermost frame of headatlas or transformers."""
    for frame in reversed(traceback.extract_stack()):
        for part in ("/pipeline/", "/transformers/"):
            if part in frame.filename and "/tests/" not in frame.filename:
                return f"{part[1:]}{frame.filename.split(part)[-1]}:{frame.lineno}"
    return "test"


@contextlib.contextmanager
def pretend_cuda(monkeypatch: Any, total_memory: int = 80 << 30) -> Iterator[PretendCuda]:
    """Replace what torch needs of a GPU inside the block, and yield the pretend GPU."""
    gpu = PretendCuda(total_memory)
    sdpa, tensor = torch.nn.functional.scaled_dot_product_attention, torch.tensor

    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, **options: Any) -> Tensor:
        if not isinstance(query, PretendTensor):
            return sdpa(query, key, value, attn_mask=attn_mask, **options)
        gpu.n_sdpa += 1
        mask = attn_mask.dense() if hasattr(attn_mask, "dense") else attn_mask
        with _disable_current_modes():
            vectors = (query.numbers, key.numbers, value.numbers)  # type: ignore[attr-defined]
            return PretendTensor(sdpa(*vectors, attn_mask=_numbers(mask), **options))

    def new_tensor(values: Any, **options: Any) -> Tensor:
        if not _is_cuda(options.pop("device", None) if _is_cuda(options.get("device")) else None):
            return tensor(values, **options)
        gpu.wait("copy to device")
        with _disable_current_modes():
            return PretendTensor(tensor(values, **options))

    module_to = torch.nn.Module.to

    def move(module: torch.nn.Module, *args: Any, **options: Any) -> torch.nn.Module:
        if not args or not isinstance(args[0], str | torch.device) or torch.device(args[0]).type != "cuda":
            return module_to(module, *args, **options)
        gpu.to_device(module)
        return module

    @contextlib.contextmanager
    def use_stream(stream: Stream) -> Iterator[None]:
        before, gpu.stream = gpu.stream, stream
        yield
        gpu.stream = before

    torch._C._ensureCUDADeviceGuardSet()
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
        patch.setattr(torch, "tensor", new_tensor)
        patch.setattr(torch, "inference_mode", torch.no_grad)  # a subclass cannot keep versions in inference mode
        for name, value in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "current_device": lambda: 0,
            "device": lambda device: contextlib.nullcontext(),
            "Stream": Stream,
            "Event": Event,
            "current_stream": lambda device=None: gpu.stream,
            "stream": use_stream,
            "empty_cache": lambda: None,
            "get_device_properties": lambda device=None: SimpleNamespace(
                name="pretend GPU", total_memory=total_memory, major=9, minor=0, multi_processor_count=132
            ),
            "get_device_name": lambda device=None: "pretend GPU",
            "mem_get_info": lambda device=None: (total_memory, total_memory),
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(torch.nn.Module, "to", move)
        patch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
        patch.setattr(torch.Tensor, "pin_memory", lambda self, *_: gpu.pin(self.clone()))
        patch.setattr(torch.Tensor, "is_pinned", lambda self, *_: gpu.is_pinned(self))
        patch.setattr(PretendCuda, "current", gpu)
        with gpu:
            yield gpu
