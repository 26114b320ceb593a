"""What is timed: the operator's problems, and every way to compute them that a PyTorch user has."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from dover_kernels import dwconv3d_layernorm
from torch import Tensor

EPS = 1e-6
DIRECTIONS = ("forward", "training")
#: Capturing is the benchmark's own task (`bench.run`), so compilers leave it.
COMPILE_MODE = "max-autotune-no-cudagraphs"
Function = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Problem:
    """One layer: x (B,C,T,H,W) in `dtype`, a kernel (k_t,7,7)."""

    B: int
    C: int
    T: int
    H: int
    W: int
    k_t: int
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{self.B}x{self.C}x{self.T}x{self.H}x{self.W} k_t={self.k_t} {str(self.dtype)[6:]}"

    @classmethod
    def named(cls, name: str) -> "Problem":
        """The one whose name as text is `name`."""
        shape, k_t, dtype = name.split()
        return cls(*map(int, shape.split("x")), int(k_t.removeprefix("k_t=")), getattr(torch, dtype))

    @property
    def elements(self) -> int:
        return self.B * self.C * self.T * self.H * self.W

    def flops(self, direction: str) -> int:
        """Multiplications and additions of the convolution; in training also of its two gradients, each as many."""
        convolutions = 1 if direction == "forward" else 3
        return convolutions * 2 * 49 * self.k_t * self.elements

    def bytes(self, direction: str) -> int:
        """The least that is moved: x in, z out; in training then x and dz in, dx out. What an implementation keeps (y)
        or passes between its kernels (dy) is its own affair, and parameters are small."""
        tensors = 2 if direction == "forward" else 5
        return tensors * self.dtype.itemsize * self.elements

    def shorter(self, frames: int) -> "Problem":
        return replace(self, T=min(self.T, frames))

    def operands(self, device: str) -> tuple[list[Tensor], Tensor]:
        """Random x and parameters, x contiguous and all asking for gradients; and a gradient dz of z."""
        torch.manual_seed(0)
        shape = (self.B, self.C, self.T, self.H, self.W)
        sizes = [shape, (self.C, 1, self.k_t, 7, 7), *[(self.C,)] * 3]
        tensors = [torch.randn(size, device=device, dtype=self.dtype).requires_grad_() for size in sizes]
        return tensors, torch.randn(shape, device=device, dtype=self.dtype)


#: Channels, and the side of a frame, after a stem of stride (1,4,4), for 640x640 and for 224x224.
STAGES = {96: (160, 56), 192: (80, 28), 384: (40, 14), 768: (20, 7)}


def gpu_problems(dtypes: tuple[torch.dtype, ...] = (torch.bfloat16,)) -> list[Problem]:
    """The four stages of 64 frames of 640x640 and of 32 frames of 224x224."""
    sizes = [(C, T, sides[i]) for i, T in enumerate((64, 32)) for C, sides in STAGES.items()]
    return [Problem(1, C, T, H, H, k_t, dtype) for dtype in dtypes for C, T, H in sizes for k_t in (1, 3, 7)]


def matching(problems: list[Problem], pattern: str) -> list[Problem]:
    """Those whose name has the regular expression. Raises ValueError, with all names, where none has."""
    found = [problem for problem in problems if re.search(pattern, str(problem))]
    if not found:
        raise ValueError(f"{pattern!r} is in none of: {', '.join(map(str, problems))}")
    return found


def cpu_problems() -> list[Problem]:
    """The four stages of 8 frames of 112x112."""
    return [Problem(1, C, 8, s[1] // 2, s[1] // 2, k, torch.float32) for C, s in STAGES.items() for k in (1, 3)]


def normalize(y: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """LayerNorm over the channels of (B,C,T,H,W)."""
    y = F.layer_norm(y.permute(0, 2, 3, 4, 1), (y.shape[1],), gamma, beta, EPS)
    return y.permute(0, 4, 1, 2, 3)


def operator(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return dwconv3d_layernorm(x, weight, bias, gamma, beta, EPS)


def eager(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    y = F.conv3d(x, weight, bias, padding=(weight.shape[2] // 2, 3, 3), groups=x.shape[1])
    return normalize(y, gamma, beta)


def _frames(x: Tensor) -> Tensor:
    """(B,C,T,H,W) as (B*T,C,H,W); of channels_last_3d a channels_last view."""
    return x.transpose(1, 2).flatten(0, 1)


def conv2d_over_frames(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """For k_t = 1 only."""
    y = F.conv2d(_frames(x), weight[:, :, 0], bias, padding=3, groups=x.shape[1])
    return normalize(y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2), gamma, beta)


def shifted_conv2d(x: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    """A conv2d for each of the k_t frames of the kernel, on x moved in time, summed. Channels stay last throughout."""
    B, C, T = x.shape[:3]
    k_t = weight.shape[2]
    padded = F.pad(x.permute(0, 2, 3, 4, 1), (0,) * 6 + (k_t // 2, k_t // 2))  # (B,T+,H,W,C)
    y = None
    for i in range(k_t):
        moved = padded[:, i : i + T].flatten(0, 1).permute(0, 3, 1, 2)  # of one clip, a view
        part = F.conv2d(moved, weight[:, :, i], bias if i == 0 else None, padding=3, groups=C)
        y = part if y is None else y + part
    assert y is not None
    return normalize(y.unflatten(0, (B, T)).transpose(1, 2), gamma, beta)


def copy(x: Tensor, *_parameters: Tensor) -> Tensor:
    """The same bytes, x in and one tensor of its size out: a floor, not a rival."""
    return x.clone()


@dataclass(frozen=True)
class Candidate:
    """A way to compute the problem. `channels_last`: it is handed x in channels_last_3d."""

    name: str
    function: Function
    channels_last: bool = True
    cudnn_benchmark: bool = False
    compiled: bool = False
    gpu_only: bool = False
    k_t: str = "any"

    def takes(self, problem: Problem, device: str) -> bool:
        if self.gpu_only and device == "cpu":
            return False
        return self.k_t == "any" or (self.k_t == "one") == (problem.k_t == 1)

    @contextmanager
    def settings(self) -> Iterator[None]:
        """Where cuDNN searches for its fastest algorithm if the name says so, and no fp32 product is one in TF32."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=self.cudnn_benchmark, allow_tf32=False):
            yield

    def build(self) -> Function:
        """The function to call; compiled anew, so that one problem's guards are not the next one's."""
        if not self.compiled:
            return self.function
        torch.compiler.reset()
        return torch.compile(self.function, mode=COMPILE_MODE)


OPERATOR = Candidate("dover", operator)
COPY = Candidate("copy", copy)
EAGER = Candidate("eager NCDHW", eager, channels_last=False)
BY_FRAMES = (
    Candidate("conv2d over B*T, channels_last, cudnn.benchmark", conv2d_over_frames, cudnn_benchmark=True, k_t="one"),
    Candidate("sum of k_t shifted conv2d, cudnn.benchmark", shifted_conv2d, cudnn_benchmark=True, k_t="many"),
)
COMPILED = (
    Candidate(f"torch.compile {COMPILE_MODE}", eager, compiled=True, gpu_only=True),
    Candidate(
        f"conv2d over B*T, torch.compile {COMPILE_MODE}", conv2d_over_frames, compiled=True, gpu_only=True, k_t="one"
    ),
)
OTHERS = (
    Candidate("eager channels_last_3d", eager),
    Candidate("eager NCDHW, cudnn.benchmark", eager, channels_last=False, cudnn_benchmark=True, gpu_only=True),
    Candidate("eager channels_last_3d, cudnn.benchmark", eager, cudnn_benchmark=True, gpu_only=True),
)
BASELINES = (EAGER, *BY_FRAMES, *COMPILED, *OTHERS)
#: What is timed before what: the copy, to whose rate the report refers, and the strongest rivals first.
TIERS = ((COPY, OPERATOR, EAGER, *BY_FRAMES), COMPILED, OTHERS)
CANDIDATES = (OPERATOR, *BASELINES, COPY)
