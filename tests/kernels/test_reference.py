"""The operator on a CPU: plain PyTorch, so right by definition if it agrees with the definition."""

from dataclasses import replace

import pytest
import torch
from dover_kernels import dwconv3d_layernorm
from torch.utils._python_dispatch import TorchDispatchMode

from .conftest import make_operands, relative_errors


def by_definition(x, weight, bias, gamma, beta, eps):
    """The sum over taps of shifted, zero-padded copies of x, then LayerNorm, written out."""
    pads = [size // 2 for size in weight.shape[2:]]
    padded = torch.nn.functional.pad(x, [p for pad in reversed(pads) for p in (pad, pad)])
    T, H, W = x.shape[2:]
    y = bias.view(1, -1, 1, 1, 1).expand_as(x)
    for t in range(weight.shape[2]):
        for h in range(weight.shape[3]):
            for w in range(weight.shape[4]):
                tap = weight[:, 0, t, h, w].view(1, -1, 1, 1, 1)
                y = y + tap * padded[:, :, t : t + T, h : h + H, w : w + W]
    centred = y - y.mean(1, keepdim=True)
    normal = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt()
    return normal * gamma.view(1, -1, 1, 1, 1) + beta.view(1, -1, 1, 1, 1)


SHAPES = {
    "plain": ((2, 16, 4, 10, 9), (3, 7, 7)),
    "fewer_frames_than_taps": ((1, 8, 2, 8, 8), (7, 7, 7)),
    "one_frame": ((1, 8, 1, 8, 8), (3, 7, 7)),
    "frame_smaller_than_kernel": ((2, 8, 3, 4, 5), (1, 7, 7)),
    "one_position": ((1, 8, 1, 1, 1), (3, 7, 7)),
    "five_channels": ((1, 5, 3, 6, 6), (3, 3, 3)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_the_definition_in_fp64(name):
    operands = make_operands(*SHAPES[name], dtype=torch.float64)
    errors = relative_errors(operands.run(dwconv3d_layernorm), operands.run(by_definition))
    assert max(errors.values()) < 1e-12, errors


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_keeps_the_dtype_and_its_precision(dtype, tolerance):
    operands = make_operands((2, 16, 3, 9, 10), (3, 7, 7), dtype=dtype, parameters=torch.float32)
    got = operands.run(dwconv3d_layernorm)
    assert got["z"].dtype == got["dx"].dtype == dtype
    assert got["dweight"].dtype == torch.float32
    errors = relative_errors(got, operands.oracle())
    assert max(errors.values()) < tolerance, errors


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Tensors are taken to be on a GPU; gives the strides of the operands of each convolution."""
    strides = []

    def conv3d(x, weight, *arguments, of=torch.nn.functional.conv3d, **named):
        strides.append((x.stride(), weight.stride()))
        return of(x, weight, *arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "conv3d", conv3d)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    return strides


@pytest.fixture
def inherited_precision():
    """cuDNN's operators inherit theirs: so they do in a fresh process, and no longer in one that set `cudnn.flags`."""
    if not hasattr(torch.backends.cudnn, "conv"):
        pytest.skip("this torch has one switch for all operators")
    switches = torch.backends, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [switch.fp32_precision for switch in switches]
    for switch in switches:
        switch.fp32_precision = "none"
    yield
    for switch, precision in zip(switches, before, strict=True):
        switch.fp32_precision = precision


def test_precision_that_operators_inherit_is_inherited_in_it_and_after_it(as_on_a_gpu, inherited_precision):
    conv = torch.backends.cudnn.conv
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "convolution" in function.overloadpacket.__name__:
                seen.append(conv.fp32_precision)
            return function(*args, **(kwargs or {}))

    torch.backends.fp32_precision = "tf32"
    with Watch():
        make_operands((1, 8, 2, 5, 6), (3, 7, 7), dtype=torch.float64).run(dwconv3d_layernorm)
    assert seen == ["tf32"] * 3
    torch.backends.fp32_precision = "ieee"
    assert conv.fp32_precision == "ieee"


@pytest.mark.parametrize("name", ["channels_last_3d", "one_position", "frames_first"])
def test_pytorch_kernel_on_cuda_meets_strides_that_it_can_walk(name, as_on_a_gpu):
    """It takes its first address by strides and goes on by sizes, so both must say the same; on a CPU nothing shows."""
    shape = {"channels_last_3d": (2, 8, 3, 4, 5), "one_position": (2, 8, 1, 1, 1), "frames_first": (2, 8, 1, 4, 5)}[
        name
    ]
    operands = make_operands(shape, (3, 7, 7), dtype=torch.float64)
    x, weight, *rest = operands.tensors
    if name == "frames_first":  # a batch (B,T,C,H,W), turned
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    else:
        x = x.as_strided(shape, torch.empty(shape).to(memory_format=torch.channels_last_3d).stride())
    weight = weight.to(memory_format=torch.channels_last_3d)
    replace(operands, tensors=(x, weight, *rest)).run(dwconv3d_layernorm)
    canonical = torch.empty(shape).stride(), torch.empty(weight.shape).stride()
    assert as_on_a_gpu == [canonical] * 2, "of x, and of dy for dx"


def test_gradients_are_those_of_finite_differences():
    operands = make_operands((1, 2, 2, 3, 2), (3, 7, 7), dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in operands.tensors]
    assert torch.autograd.gradcheck(dwconv3d_layernorm, leaves)


def test_gradients_are_of_full_precision_whatever_the_caller_computes_in():
    operands = [torch.randn(shape) for shape in ((1, 8, 3, 9, 9), (8, 1, 3, 7, 7), (8,), (8,), (8,))]
    operands = [operand.requires_grad_() for operand in operands]
    z = dwconv3d_layernorm(*operands)
    expected = torch.autograd.grad(z.sum(), operands, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(z.sum(), operands)
    assert all(map(torch.equal, found, expected))


def test_second_derivative_exists():
    operands = make_operands((1, 2, 1, 2, 2), (1, 3, 3), dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in operands.tensors]
    assert torch.autograd.gradgradcheck(dwconv3d_layernorm, leaves)


@pytest.mark.parametrize("shape", [(0, 8, 2, 4, 4), (2, 8, 0, 4, 4), (2, 8, 2, 0, 4), (2, 8, 2, 4, 0)])
def test_nothing_in_nothing_out(shape):
    operands = make_operands(shape, (3, 7, 7))
    got = operands.run(dwconv3d_layernorm)
    assert got["z"].shape == shape
    assert got["dweight"].shape == (8, 1, 3, 7, 7)
    assert not got["dweight"].any()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_clip_scores_the_same_bits_in_any_batch(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x, *parameters = make_operands((5, 96, 4, 14, 14), (3, 7, 7)).tensors
        together = dwconv3d_layernorm(x, *parameters)
        for i in range(5):
            assert torch.equal(dwconv3d_layernorm(x[i : i + 1], *parameters), together[i : i + 1])
    finally:
        torch.set_num_threads(before)


def test_memory_formats_give_the_same_result_in_channels_last():
    x, *parameters = make_operands((2, 8, 3, 6, 7), (3, 7, 7)).tensors
    base = dwconv3d_layernorm(x, *parameters)
    assert base.is_contiguous(memory_format=torch.channels_last_3d)
    views = {
        "channels_last_3d": x.contiguous(memory_format=torch.channels_last_3d),
        "strided": torch.stack([x, x], dim=-1)[..., 0],
        "time_first": x.transpose(1, 2).contiguous().transpose(1, 2),
    }
    for name, view in views.items():
        assert torch.equal(dwconv3d_layernorm(view, *parameters), base), name
