"""Runs compiled kernels on a CPU: the instructions of PTX that Triton makes of them, on NumPy, a program at a time and
all its threads abreast. So a test sees what `gluon_on_numpy` cannot: layouts as the compiler understood them.

Threads of a program take every branch together, which is asserted. Shared memory knows who touched what since the last
barrier: a word that one warp wrote and another reads, or that one read and another writes, with no barrier between them
is a race, and so is a read of what an asynchronous copy has not been waited for. Global memory knows its tensors: an
access beside them, or one that is not aligned, is an error. Nothing is said of time.
"""

import re
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

_TYPES = {
    "s32": np.int32, "u32": np.uint32, "b32": np.uint32, "s64": np.int64, "u64": np.uint64, "b64": np.uint64,
    "b16": np.uint16, "u16": np.uint16, "s16": np.int16, "f32": np.float32, "f64": np.float64,
}  # fmt: skip
_COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_BITWISE = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}
_BASE, _GUARD = 1 << 20, 1 << 12


class Race(Exception):
    """Two warps touch a word of shared memory, one of them to write it, and no barrier is between them."""


class Memory:
    """Tensors in global memory, as bytes with room between them that nobody may touch."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.spans: list[tuple[int, int]] = []
        self.addresses: list[int] = []
        places: dict[int, int] = {}  # one tensor may be several arguments
        address = _BASE
        for tensor in tensors:
            size = tensor.numel() * tensor.element_size()
            place = places.setdefault(tensor.data_ptr(), address)
            self.addresses.append(place)
            self.spans.append((place, size))
            address += (size + _GUARD + 255) // 256 * 256 if place == address else 0
        self.content = np.zeros(address - _BASE, np.uint8)
        for tensor, (start, size) in zip(tensors, self.spans, strict=True):
            self.content[start - _BASE : start - _BASE + size] = _bytes(tensor)

    def write_back(self, tensors: list[torch.Tensor]) -> None:
        for tensor, (start, size) in zip(tensors, self.spans, strict=True):
            _bytes(tensor)[:] = self.content[start - _BASE : start - _BASE + size]

    def at(self, addresses: np.ndarray, width: int) -> np.ndarray:
        """Where `width` bytes from each address lie, [n, width]."""
        assert not (addresses % width).any(), f"addresses that are no multiples of {width}"
        inside = np.zeros(addresses.shape, bool)
        for start, size in self.spans:
            inside |= (addresses >= start) & (addresses + width <= start + size)
        assert inside.all(), f"{(~inside).sum()} accesses beside the tensors"
        return (addresses - _BASE)[:, None] + np.arange(width)


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    """The memory of a dense tensor."""
    flat = tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.view(torch.uint8).numpy()


class Shared:
    """Shared memory, which knows for each byte who wrote it and who read it since the last barrier."""

    FREE, MANY = -1, -2

    def __init__(self, size: int) -> None:
        self.content = np.full(size, 0xFF, np.uint8)
        self.writer = np.full(size, self.FREE)
        self.reader = np.full(size, self.FREE)
        self.pending = np.zeros(size, bool)

    def barrier(self) -> None:
        self.writer[:] = self.FREE
        self.reader[:] = self.FREE

    def read(self, where: np.ndarray, warps: np.ndarray) -> np.ndarray:
        self._check(where, warps, self.writer, "reads what another wrote")
        by = np.broadcast_to(warps[:, None], where.shape)
        others = (self.reader[where] != self.FREE) & (self.reader[where] != by)
        self.reader[where] = np.where(others, self.MANY, by)
        return self.content[where]

    def write(self, where: np.ndarray, warps: np.ndarray, values: np.ndarray) -> None:
        self._claim(where, warps)
        self.content[where] = values

    def copy_begins(self, where: np.ndarray, warps: np.ndarray) -> None:
        self._claim(where, warps)
        self.pending[where] = True

    def copy_ends(self, where: np.ndarray, warps: np.ndarray, values: np.ndarray) -> None:
        self.pending[where] = False
        self.write(where, warps, values)

    def _claim(self, where: np.ndarray, warps: np.ndarray) -> None:
        self._check(where, warps, self.reader, "writes what another reads")
        self._check(where, warps, self.writer, "writes what another wrote")
        self.writer[where] = warps[:, None]

    def _check(self, where: np.ndarray, warps: np.ndarray, touched: np.ndarray, what: str) -> None:
        if self.pending[where].any():
            raise Race("a copy that was not waited for is touched")
        by = touched[where]
        wrong = (by != self.FREE) & (by != warps[:, None])
        if wrong.any():
            raise Race(f"a warp {what}, with no barrier between them ({wrong.sum()} bytes)")


class Program:
    """PTX of one kernel, parsed."""

    def __init__(self, ptx: str) -> None:
        self.threads = int(re.search(r"\.reqntid\s+(\d+)", ptx)[1])  # type: ignore[index]
        self.code: list[tuple[str, bool, str, str]] = []  # predicate, negated, operation, operands
        self.labels: dict[str, int] = {}
        body = ptx[ptx.index("\n{") :]
        body = body[: body.index("\n}")]
        for raw in body.splitlines():
            line = raw.split("//")[0].strip()
            if found := re.fullmatch(r"(\$\w+):", line):
                self.labels[found[1]] = len(self.code)
            elif line.endswith(";") and not line.startswith("."):
                match = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([\w.:]+)\s*(.*);", line)
                assert match, line
                self.code.append((match[2] or "", match[1] == "!", match[3], match[4].strip()))


class Machine:
    """One program of the grid as it runs."""

    def __init__(
        self, program: Program, parameters: list[int], memory: Memory, shared: int, block: int, grid: int
    ) -> None:
        self.program, self.parameters, self.memory = program, parameters, memory
        self.shared = Shared(shared)
        self.n = program.threads
        self.warps = np.arange(self.n) // 32
        self.registers: dict[str, np.ndarray] = {
            "%tid.x": np.arange(self.n, dtype=np.uint32), "%ctaid.x": np.full(self.n, block, np.uint32),
            "%nctaid.x": np.full(self.n, grid, np.uint32), "global_smem": np.zeros(self.n, np.uint32),
        }  # fmt: skip
        self.copies: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.groups: list[list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = []

    def run(self) -> None:
        at = 0
        with np.errstate(over="ignore", invalid="ignore"):
            while at < len(self.program.code):
                predicate, negated, operation, operands = self.program.code[at]
                at += 1
                active = self.registers[predicate] ^ negated if predicate else np.ones(self.n, bool)
                if operation.startswith("bra"):
                    assert active.all() or not active.any(), "threads part"
                    at = self.program.labels[operands] if active.all() else at
                elif operation == "ret":
                    return
                else:
                    self.step(operation, operands, active)

    def value(self, name: str, dtype: Any) -> np.ndarray:
        if name in self.registers:
            found = self.registers[name]
        elif name.startswith("0f"):
            found = np.full(self.n, int(name[2:], 16), np.uint32)
        elif name.startswith("0d"):
            found = np.full(self.n, int(name[2:], 16), np.uint64)
        else:
            bits = 8 * np.dtype(dtype).itemsize
            found = np.full(self.n, int(name, 0) % (1 << bits)).astype(f"u{bits // 8}")
        if found.dtype == bool:
            return found
        assert found.dtype.itemsize == np.dtype(dtype).itemsize, (name, found.dtype, dtype)
        return found.view(dtype)

    def put(self, name: str, value: np.ndarray, active: np.ndarray) -> None:
        if value.dtype != bool:
            value = value.view(f"u{value.dtype.itemsize}")
        before = self.registers.get(name)
        self.registers[name] = value.copy() if before is None or active.all() else np.where(active, value, before)

    def address(self, text: str) -> np.ndarray:
        match = re.fullmatch(r"\[\s*([%\w.]+)\s*(?:\+\s*(-?\d+)\s*)?\]", text.strip())
        assert match, text
        return self.registers[match[1]].astype(np.int64) + int(match[2] or 0)

    def step(self, operation: str, operands: str, active: np.ndarray) -> None:
        family, *rest = operation.split(".")
        arguments = [a.strip() for a in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,{}\[\]]+", operands) if a.strip()]
        handler: Callable[..., None] | None = getattr(self, f"do_{family}", None)
        if handler is None:
            raise NotImplementedError(f"{operation} {operands}")
        handler(rest, arguments, active)

    # Arithmetic

    def do_mov(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        if a[1].startswith("{") or a[0].startswith("{"):
            size = np.dtype(_TYPES[rest[0]]).itemsize
            part = f"u{size // 2}"
            if a[1].startswith("{"):
                halves = np.stack([self.value(x, part) for x in _names(a[1])], 1)
                self.put(a[0], halves.view(f"u{size}")[:, 0], active)
            else:
                halves = self.value(a[1], f"u{size}").copy().view(part).reshape(self.n, 2)
                for i, name in enumerate(_names(a[0])):
                    self.put(name, np.ascontiguousarray(halves[:, i]), active)
        else:
            self.put(a[0], self.value(a[1], _TYPES[rest[0]] if rest[0] != "pred" else bool), active)

    def _binary(self, function: Callable[..., np.ndarray]) -> Callable[..., None]:
        def do(rest: list[str], a: list[str], active: np.ndarray) -> None:
            dtype = _TYPES.get(rest[-1], bool)
            self.put(a[0], function(self.value(a[1], dtype), self.value(a[2], dtype)), active)

        return do

    def __getattr__(self, name: str) -> Any:
        functions = {
            "do_add": np.add, "do_sub": np.subtract, "do_min": np.minimum, "do_max": np.maximum,
            "do_div": _quotient,
            "do_rem": lambda x, y: (np.sign(x) * (np.abs(x) % np.abs(y))).astype(x.dtype),
            **{f"do_{key}": function for key, function in _BITWISE.items()},
        }  # fmt: skip
        if name in functions:
            return self._binary(functions[name])
        raise AttributeError(name)

    def do_neg(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        self.put(a[0], -self.value(a[1], _TYPES[rest[0]]), active)

    def do_not(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        self.put(a[0], ~self.value(a[1], _TYPES.get(rest[0], bool)), active)

    def do_mul(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        self.put(a[0], self._product(rest, a), active)

    def _product(self, rest: list[str], a: list[str]) -> np.ndarray:
        dtype = _TYPES[rest[-1]]
        x, y = self.value(a[1], dtype), self.value(a[2], dtype)
        if rest[0] == "lo" or dtype == np.float32:
            return x * y
        assert dtype in (np.int32, np.uint32), rest
        wide = np.int64 if dtype == np.int32 else np.uint64
        product = x.astype(wide) * y.astype(wide)
        return product if rest[0] == "wide" else (product >> wide(32)).astype(dtype)

    def do_mad(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        product = self._product(rest, a)
        self.put(a[0], product + self.value(a[3], product.dtype), active)

    def do_shl(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        dtype = _TYPES[rest[0]]
        self.put(a[0], self.value(a[1], dtype) << self.value(a[2], np.uint32).astype(dtype), active)

    def do_shr(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        dtype = _TYPES[rest[0]]
        self.put(a[0], self.value(a[1], dtype) >> self.value(a[2], np.uint32).astype(dtype), active)

    def do_bfe(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        dtype = _TYPES[rest[0]]
        start, length = int(a[2], 0), int(a[3], 0)
        above = 8 * np.dtype(dtype).itemsize - length  # shifting down keeps the sign of a signed field
        self.put(a[0], (self.value(a[1], dtype) << dtype(above - start)) >> dtype(above), active)

    def do_fma(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        x, y, z = (self.value(name, np.float32).astype(np.float64) for name in a[1:])
        self.put(a[0], (x * y + z).astype(np.float32), active)

    def do_rsqrt(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        self.put(a[0], 1 / np.sqrt(self.value(a[1], np.float32)), active)

    def do_setp(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        dtype = _TYPES[rest[-1]]
        self.put(a[0], _COMPARE[rest[0]](self.value(a[1], dtype), self.value(a[2], dtype)), active)

    def do_selp(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        dtype = _TYPES[rest[0]]
        self.put(a[0], np.where(self.registers[a[3]], self.value(a[1], dtype), self.value(a[2], dtype)), active)

    def do_cvt(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        if rest[1] in ("bf16x2", "f16x2"):  # the first operand is the upper half
            half = _bf16 if rest[1] == "bf16x2" else _fp16
            high, low = (half(self.value(x, np.float32)).astype(np.uint32) for x in a[1:])
            self.put(a[0], low | (high << 16), active)
        else:
            to, of = rest[-2:]
            value = self.value(a[1], _TYPES.get(of, np.uint16))
            if of in ("bf16", "f16"):
                value = (_from_bf16 if of == "bf16" else _from_fp16)(value.astype(np.uint32))[0]
            half = {"bf16": _bf16, "f16": _fp16}.get(to)
            self.put(a[0], half(value.astype(np.float32)) if half else value.astype(_TYPES[to]), active)

    # Memory

    def do_ld(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        size = np.dtype(_TYPES[rest[-1]]).itemsize
        if rest[0] == "param":
            n = int(re.search(r"param_(\d+)", a[1])[1])  # type: ignore[index]
            value = np.array(self.parameters[n] % (1 << 8 * size), np.uint64).astype(f"u{size}").view(_TYPES[rest[-1]])
            wide = np.int64 if a[0].startswith("%rd") and size < 8 else value.dtype  # a wider register extends it
            self.put(a[0], np.full(self.n, value.astype(wide)), active)
            return
        names = _names(a[0])
        read = self._read(rest[0], self.address(a[1]), size * len(names), active)
        for i, name in enumerate(names):
            part = np.ascontiguousarray(read[:, i * size : (i + 1) * size])
            self.put(name, part.view(f"u{size}")[:, 0], active)

    def do_st(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        size = np.dtype(_TYPES[rest[-1]]).itemsize
        values = [self.value(name, f"u{size}") for name in _names(a[1])]
        stored = np.stack(values, 1).view(np.uint8).reshape(self.n, -1)[active]
        addresses, width = self.address(a[0])[active], size * len(values)
        if rest[0] == "global":
            self.memory.content[self.memory.at(addresses, width)] = stored
        else:
            self.shared.write(_span(addresses, width), self.warps[active], stored)

    def _read(self, space: str, addresses: np.ndarray, width: int, active: np.ndarray) -> np.ndarray:
        read = np.zeros((self.n, width), np.uint8)
        if space == "global":
            read[active] = self.memory.content[self.memory.at(addresses[active], width)]
        else:
            read[active] = self.shared.read(_span(addresses[active], width), self.warps[active])
        return read

    def do_cp(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        if rest[1] == "commit_group":
            self.groups.append(self.copies)
            self.copies = []
        elif rest[1] == "wait_group":
            while len(self.groups) > int(a[0]):
                for copy in self.groups.pop(0):
                    self.shared.copy_ends(*copy)
        else:
            width, sizes = int(a[2], 0), self.value(a[3], np.uint32)
            taken = active & (sizes == width)
            assert (taken | ~active | (sizes == 0)).all(), "a part of a copy"
            values = self._read("global", self.address(a[1]), width, taken)[active]
            where = _span(self.address(a[0])[active], width)
            self.shared.copy_begins(where, self.warps[active])
            self.copies.append((where, self.warps[active], values))

    def do_bar(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        self.shared.barrier()

    # Warps

    def do_shfl(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        assert active.all()
        threads = np.arange(self.n)
        lanes = threads ^ int(a[2], 0) if rest[1] == "bfly" else threads - threads % 32 + self.value(a[2], np.uint32)
        assert rest[1] in ("bfly", "idx"), rest
        self.put(a[0].split("|")[0], self.value(a[1], np.uint32)[lanes], active)

    def do_ldmatrix(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        names, rows = _names(a[0]), self.address(a[1]).reshape(-1, 32)
        for i, name in enumerate(names):
            where = _span(rows[:, 8 * i : 8 * i + 8].reshape(-1), 16)
            matrix = self.shared.read(where, np.repeat(np.arange(self.n // 32), 8))
            matrix = np.ascontiguousarray(matrix).view(np.uint16).reshape(-1, 8, 8)
            if "trans" in rest:
                matrix = np.ascontiguousarray(matrix.transpose(0, 2, 1))
            self.put(name, matrix.view(np.uint32).reshape(-1), active)

    def do_stmatrix(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        names, rows = _names(a[1]), self.address(a[0]).reshape(-1, 32)
        for i, name in enumerate(names):
            matrix = self.value(name, np.uint32).copy().view(np.uint16).reshape(-1, 8, 8)
            if "trans" in rest:
                matrix = np.ascontiguousarray(matrix.transpose(0, 2, 1))
            where = _span(rows[:, 8 * i : 8 * i + 8].reshape(-1), 16)
            self.shared.write(where, np.repeat(np.arange(self.n // 32), 8), matrix.view(np.uint8).reshape(-1, 16))

    def do_mma(self, rest: list[str], a: list[str], active: np.ndarray) -> None:
        assert rest[2:5] == ["m16n8k16", "row", "col"], rest
        to_float = _from_bf16 if rest[6] == "bf16" else _from_fp16
        out, in_a, in_b, in_c = (_names(x) for x in a)
        A = np.empty((self.n // 32, 16, 16), np.float32)
        B = np.empty((self.n // 32, 16, 8), np.float32)
        C = np.empty((self.n // 32, 16, 8), np.float32)
        lane = np.arange(32)
        group, pair = lane // 4, 2 * (lane % 4)
        for i, name in enumerate(in_a):
            low, high = to_float(self.value(name, np.uint32).reshape(-1, 32))
            row, column = group + 8 * (i % 2), pair + 8 * (i // 2)
            A[:, row, column], A[:, row, column + 1] = low, high
        for i, name in enumerate(in_b):
            low, high = to_float(self.value(name, np.uint32).reshape(-1, 32))
            B[:, pair + 8 * i, group], B[:, pair + 8 * i + 1, group] = low, high
        for i, name in enumerate(in_c):
            C[:, group + 8 * (i // 2), pair + i % 2] = self.value(name, np.float32).reshape(-1, 32)
        D = A @ B + C
        for i, name in enumerate(out):
            result = D[:, group + 8 * (i // 2), pair + i % 2]
            self.put(name, np.ascontiguousarray(result).reshape(-1), active)


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    if x.dtype == np.float32:
        return x / y
    return (np.sign(x) * np.sign(y) * (np.abs(x) // np.abs(y))).astype(x.dtype)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.strip("{} ").split(",")]


def _span(addresses: np.ndarray, width: int) -> np.ndarray:
    assert not (addresses % width).any(), f"addresses in shared memory that are no multiples of {width}"
    return addresses[:, None] + np.arange(width)


def _bf16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)


def _fp16(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).view(np.uint16)


def _from_bf16(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (words << 16).view(np.float32), (words & np.uint32(0xFFFF0000)).view(np.float32)


def _from_fp16(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    halves = np.ascontiguousarray(words).view(np.float16).astype(np.float32).reshape(*words.shape, 2)
    return halves[..., 0], halves[..., 1]


class Driver:
    """What Triton asks about the device that it compiles for."""

    def get_current_device(self) -> str:  # kernels are kept by device: a GPU's are others
        return "NumPy"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class Kernel:
    """A kernel of Triton or Gluon that launches on CPU tensors: bound, specialised and compiled by Triton as for an
    H100."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        def launch(*arguments: Any, **named: Any) -> None:
            compiled = self.compiled(*arguments, **named)
            bound = named | dict(zip(self.kernel.arg_names, arguments, strict=False))
            signature = compiled.src.signature
            given = [bound[name] for name in self.kernel.arg_names if signature[name] != "constexpr"]
            run(compiled.asm["ptx"], grid[0], given, compiled.metadata.shared)

        return launch

    def compiled(self, *arguments: Any, **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(triton.runtime.driver, "_active", Driver())
            return self.kernel.warmup(*arguments, grid=(1,), **named)


def on_numpy(module: ModuleType) -> SimpleNamespace:
    """The kernels of a module, which launch on CPU tensors."""
    return SimpleNamespace(
        **{
            name: Kernel(value) if isinstance(value, triton.JITFunction) else value
            for name, value in vars(module).items()
        }
    )


def run(ptx: str, grid: int, arguments: list[Any], shared: int) -> None:
    """All programs of a kernel whose arguments are dense tensors and integers, in the order of its parameters."""
    program = Program(ptx)
    tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
    memory = Memory(tensors)
    addresses = iter(memory.addresses)

    def parameter(value: Any) -> int:
        if isinstance(value, torch.Tensor):
            return next(addresses)
        return int(np.float32(value).view(np.uint32)) if isinstance(value, float) else value

    parameters = [parameter(value) for value in arguments] + [0, 0]  # Triton's scratch memory, which none has
    for block in range(grid):
        Machine(program, parameters, memory, shared, block, grid).run()
    memory.write_back(tensors)
