"""Runs the Gluon kernels on a CPU: Gluon has no interpreter, so its few operations are NumPy's here, one program at a
time. Layouts are nothing to NumPy; that they are what the hardware wants is for a GPU and the compiler to say."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch


class Block(np.ndarray):
    """A Gluon tensor."""

    def to(self, dtype: Any, bitcast: bool = False) -> "Block":
        return self.view(dtype) if bitcast else self.astype(dtype)

    def permute(self, *dimensions: int) -> "Block":
        return self.transpose(dimensions)


def block(value: Any, dtype: Any = None) -> Block:
    return np.asarray(value, dtype).view(Block)


class Pointer:
    """Offsets into the memory of a tensor. Raises IndexError where an access leaves it."""

    def __init__(self, memory: np.ndarray, offsets: Any = 0) -> None:
        self.memory, self.offsets = memory, block(offsets, np.int64)
        self.dtype = SimpleNamespace(element_ty=memory.dtype.type)

    def __add__(self, offsets: Any) -> "Pointer":
        return Pointer(self.memory, self.offsets + offsets)

    def at(self, mask: Any) -> tuple[Block, Block]:
        offsets, mask = np.broadcast_arrays(self.offsets, True if mask is None else mask, subok=True)
        reached = offsets[mask]
        if reached.size and not 0 <= reached.min() <= reached.max() < self.memory.size:
            raise IndexError(f"{reached.min()} to {reached.max()} of {self.memory.size} elements")
        return offsets, mask


def load(pointer: Pointer, mask: Any = None, other: Any = 0) -> Block:
    offsets, mask = pointer.at(mask)
    return block(np.where(mask, pointer.memory[np.where(mask, offsets, 0)], other), pointer.memory.dtype)


def store(pointer: Pointer, value: Block, mask: Any = None) -> None:
    offsets, mask = pointer.at(mask)
    pointer.memory[offsets[mask]] = np.broadcast_to(value, offsets.shape)[mask]


class Shared:
    def __init__(self, _dtype: Any, shape: list[int], _layout: Any) -> None:
        self.shape, self.content = tuple(shape), None

    def store(self, value: Block) -> None:
        assert value.shape == self.shape
        self.content = value.copy()

    def load(self, _layout: Any) -> Block:
        assert self.content is not None, "read before it was written"
        return self.content.copy()


class AsyncCopy:
    """Copies to shared memory, which arrive when they are waited for and not before."""

    def __init__(self) -> None:
        self.asked: list[tuple[Shared, Block]] = []
        self.groups: list[list[tuple[Shared, Block]]] = []

    def async_copy_global_to_shared(self, shared: Shared, pointer: Pointer, mask: Any) -> None:
        shared.content = None
        self.asked.append((shared, load(pointer, mask)))

    def commit_group(self) -> None:
        self.groups.append(self.asked)
        self.asked = []

    def wait_group(self, outstanding: int) -> None:
        while len(self.groups) > outstanding:
            for shared, content in self.groups.pop(0):
                shared.store(content)


def mma_v2(a: Block, b: Block, accumulator: Block) -> Block:
    return accumulator + a.astype(np.float32) @ b.astype(np.float32)


class Kernel:
    """A Gluon function: called by others as it is, and launched over a grid with tensors of PyTorch."""

    running = SimpleNamespace(program=0, num_warps=0)

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.function(*arguments, **named)

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(
            *arguments: Any, num_warps: int, maxnreg: int | None, enable_fp_fusion: bool, **constants: Any
        ) -> None:
            values = [Pointer(memory(a)) if isinstance(a, torch.Tensor) else block(a, np.int32) for a in arguments]
            Kernel.running.num_warps = num_warps
            for program in range(*grid):
                Kernel.running.program = program
                self.function(*values, **constants)

        return launch


def memory(tensor: torch.Tensor) -> np.ndarray:
    """Elements of a dense tensor, in the order in which they lie."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.numpy()


def jit(function: Any = None, **_options: Any) -> Any:
    return Kernel(function) if function else Kernel


def _no_layout(*_arguments: Any) -> None:
    return None


GL = SimpleNamespace(
    **dict.fromkeys(
        (
            "NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "DistributedLinearLayout",
            "SharedLinearLayout", "SwizzledSharedLayout",
        ),
        _no_layout,
    ),
    constexpr=None, float32=np.float32, int32=np.int32, int64=np.int64, uint16=np.uint16,
    program_id=lambda _axis: block(Kernel.running.program, np.int32),
    num_warps=lambda: Kernel.running.num_warps,
    arange=lambda first, end, layout: block(np.arange(first, end, dtype=np.int32)),
    zeros=lambda shape, dtype, layout: block(np.zeros(shape, dtype)),
    where=lambda condition, a, b: block(np.where(condition, a, b)),
    sum=lambda value, axis: value.sum(axis),
    join=lambda a, b: block(np.stack(np.broadcast_arrays(a, b), -1)),
    convert_layout=lambda value, layout, assert_trivial=False: value,
    static_range=range, load=load, store=store, allocate_shared_memory=Shared,
)  # fmt: skip


def on_numpy(module: ModuleType) -> SimpleNamespace:
    """The kernels of a module, which launch on CPU tensors."""
    lines = Path(str(module.__file__)).read_text().splitlines()
    source = "\n".join("" if line.startswith("from triton") else line for line in lines)
    shim = SimpleNamespace(jit=jit, constexpr_function=lambda function: function)
    namespace: dict[str, Any] = {"gluon": shim, "gl": GL, "mma_v2": mma_v2, "async_copy": AsyncCopy()}
    namespace["__name__"] = module.__name__
    exec(compile(source, module.__file__, "exec"), namespace)
    return SimpleNamespace(**{name: value for name, value in namespace.items() if isinstance(value, Kernel)})
