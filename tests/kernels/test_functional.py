"""The operator's front door on a CPU: what it refuses, which path it takes, and what it works under."""

import itertools
import re
from types import SimpleNamespace

import pytest
import torch
from dover_kernels import dwconv3d_layernorm, explain
from dover_kernels.dwconv3d_layernorm import functional
from dover_kernels.dwconv3d_layernorm.reference import _weight_gradient_op
from torch.utils.checkpoint import checkpoint

from .conftest import INTERPRETED, make_operands, relative_errors

pytestmark = pytest.mark.skipif(INTERPRETED, reason="describes a machine without the interpreter")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("DOVER_KERNELS", raising=False)


def operands():
    return make_operands((1, 8, 2, 5, 6), (3, 7, 7))


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (0, (8, 2, 5, 6), r"x \(B,C,T,H,W\), got shape \(8, 2, 5, 6\)"),
        (1, (8, 1, 7, 7), r"weight \(C,1,k_t,k_h,k_w\) with C = 8.*got shape \(8, 1, 7, 7\)"),
        (1, (16, 1, 3, 7, 7), r"x \(1, 8, 2, 5, 6\).*got shape \(16, 1, 3, 7, 7\)"),
        (1, (8, 8, 3, 7, 7), r"got shape \(8, 8, 3, 7, 7\)"),
        (1, (8, 1, 2, 7, 7), r"odd sizes, got shape \(8, 1, 2, 7, 7\)"),
        (2, (7,), r"bias \(8,\), got shape \(7,\)"),
        (3, (8, 1), r"ln_weight \(8,\), got shape \(8, 1\)"),
        (4, (), r"ln_bias \(8,\), got shape \(\)"),
    ],
)
def test_refuses_a_wrong_shape_and_says_what_it_got(position, shape, message):
    tensors = list(operands().tensors)
    tensors[position] = torch.zeros(shape)
    with pytest.raises(ValueError, match=message):
        dwconv3d_layernorm(*tensors)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float8_e4m3fn, torch.complex64])
def test_refuses_other_dtypes(dtype):
    x, weight, *rest = operands().tensors
    expected = "in float32, float16, bfloat16 or float64, got torch"
    with pytest.raises(TypeError, match=f"x {expected}"):
        dwconv3d_layernorm(x.to(dtype), weight, *rest)
    with pytest.raises(TypeError, match=f"weight {expected}"):
        dwconv3d_layernorm(x, weight.to(dtype), *rest)


def test_refuses_two_devices():
    tensors = operands().tensors
    with pytest.raises(ValueError, match="x is on cpu, but bias is on meta"):
        dwconv3d_layernorm(*tensors[:2], tensors[2].to("meta"), *tensors[3:])


def test_a_cpu_runs_the_reference_and_says_why():
    answer = explain(operands().tensors[0])
    assert answer.path == "reference"
    assert str(answer) == "reference on cpu: the tensor is on cpu, and Triton needs a GPU"


def test_the_environment_chooses_the_path(monkeypatch):
    tensors = operands().tensors
    monkeypatch.setenv("DOVER_KERNELS", "reference")
    assert explain(tensors[0]).reason == "DOVER_KERNELS=reference"
    monkeypatch.setenv("DOVER_KERNELS", "triton")
    with pytest.raises(RuntimeError, match=r"DOVER_KERNELS=triton, but .* cannot run: the tensor is on cpu"):
        dwconv3d_layernorm(*tensors)
    assert explain(tensors[0]).path == "refused"
    monkeypatch.setenv("DOVER_KERNELS", "cuda")
    for call in (lambda: explain(tensors[0]), lambda: dwconv3d_layernorm(*tensors)):
        with pytest.raises(ValueError, match="DOVER_KERNELS is 'cuda'; expected 'reference' or 'triton', or unset"):
            call()


@pytest.mark.parametrize(
    ("channels", "dtype", "kernel", "reason"),
    [
        (12, torch.float32, (1, 7, 7), "12 channels; they take multiples of 8 up to 8192"),
        (8200, torch.float32, (1, 7, 7), "8200 channels"),
        (96, torch.float64, (1, 7, 7), "x is torch.float64"),
        (96, torch.float32, (3, 9, 9), r"the kernel is \(3,9,9\); they take"),
        (96, torch.float32, (3, 3, 5), r"the kernel is \(3,3,5\)"),
    ],
)
def test_a_gpu_says_what_its_kernels_do_not_take(channels, dtype, kernel, reason, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, shape=(1, channels, 1, 2, 2))
    weight = torch.empty((channels, 1, *kernel), device="meta")
    answer = explain(x, weight)
    assert answer.path == "reference"
    assert re.search(reason, answer.reason), answer.reason


@pytest.mark.parametrize(
    ("channels", "dtype", "kernel", "shared", "words"),
    [
        (96, torch.bfloat16, (7, 7, 7), 2**17, "; on tensor cores"),
        (40, torch.float16, (3, 5, 5), 2**17, "; on tensor cores"),
        (96, torch.float32, (1, 7, 7), 2**17, "; without tensor cores: x is torch.float32"),
        (96, torch.float16, (9, 7, 7), 2**17, "; without tensor cores: the kernel has 9 taps in time"),
        (96, torch.float16, (3, 7, 7), 2**14, "; without tensor cores: a multiprocessor has too little shared memory"),
    ],
)
def test_a_gpu_says_whether_its_tensor_cores_run_it(channels, dtype, kernel, shared, words, monkeypatch):
    from dover_kernels.dwconv3d_layernorm import launch, tensor_cores

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(tensor_cores, "shared_memory", lambda device: shared)
    here = launch.Gpu("NVIDIA H300", "sm_90")
    monkeypatch.setattr(launch, "gpu", lambda device: here)
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=dtype, shape=(1, channels, 3, 2, 2))
    weight = torch.empty((channels, 1, *kernel), device="meta")
    answer = explain(x, weight)
    assert answer.path == "triton"
    assert words in answer.reason, answer.reason


def test_it_speaks_of_what_autocast_and_a_single_frame_make_of_the_layer(monkeypatch):
    from dover_kernels.dwconv3d_layernorm import launch, tensor_cores

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(tensor_cores, "shared_memory", lambda device: 2**17)
    monkeypatch.setattr(launch, "gpu", lambda device: None)
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32, shape=(1, 96, 4, 7, 7))
    weight = torch.empty((96, 1, 9, 7, 7), device="meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: True)
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda device: torch.bfloat16)
    assert "without tensor cores: the kernel has 9 taps in time" in explain(x, weight).reason
    x.shape = (1, 96, 1, 7, 7)
    assert explain(x, weight).reason.endswith("on tensor cores")


def test_an_old_gpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    x = SimpleNamespace(device=torch.device("cuda", 0), dtype=torch.float32, shape=(1, 96, 1, 2, 2))
    assert explain(x).reason == "the GPU has compute capability 7.5; they are built for 8.0 and later"


def test_autocast_casts_x_and_gives_its_dtype_back():
    x, *parameters = operands().tensors
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = dwconv3d_layernorm(x, *parameters)
        assert dwconv3d_layernorm(x.double(), *parameters).dtype == torch.float64
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, dwconv3d_layernorm(x.bfloat16(), *parameters))


def test_compiles_whole_with_the_same_result():
    case = operands()
    compiled = torch.compile(dwconv3d_layernorm, fullgraph=True, backend="aot_eager")
    errors = relative_errors(case.run(compiled), case.oracle())
    assert max(errors.values()) < 1e-5, errors


def test_what_a_compiler_takes_for_constant_is_marked_as_torch_marks_it():
    def marked_by_torch():
        pass

    torch.compiler.assume_constant_result(marked_by_torch)
    assert functional._select.__dict__ == functional._has_autocast.__dict__ == marked_by_torch.__dict__


def test_one_compiled_function_takes_every_layer(monkeypatch):
    monkeypatch.setenv("DOVER_KERNELS", "reference")  # has the path chosen, as on a GPU
    torch.compiler.reset()
    compiled = torch.compile(dwconv3d_layernorm, fullgraph=True, backend="aot_eager")
    for C, k_t in ((8, 1), (16, 1), (16, 3), (24, 3)):
        case = make_operands((1, C, 2, 3, 4), (k_t, 3, 3))
        errors = relative_errors(case.run(compiled), case.oracle())
        assert max(errors.values()) < 1e-5, (C, k_t, errors)


def test_a_compiled_training_step_takes_any_batch_size_and_length():
    torch.compiler.reset()
    compiled = torch.compile(dwconv3d_layernorm, fullgraph=True, backend="aot_eager")
    for B, T in itertools.product((1, 2, 3, 4), (1, 2, 3, 4)):  # more than the eight graphs a compiler keeps
        case = make_operands((B, 8, T, 3, 4), (3, 3, 3))
        errors = relative_errors(case.run(compiled), case.oracle())
        assert max(errors.values()) < 1e-5, (B, T, errors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_compilers_see_of_the_weight_gradient_is_what_it_is(dtype):
    x, dy = torch.randn(2, 2, 8, 3, 4, 5, dtype=dtype)
    torch.library.opcheck(_weight_gradient_op, (x, dy, [3, 3, 3]), test_utils=("test_schema", "test_faketensor"))


def test_gradients_for_each_clip_by_torch_func():
    x, *parameters = make_operands((3, 8, 2, 5, 6), (3, 7, 7)).tensors

    def loss(parameters, clip):
        return dwconv3d_layernorm(clip[None], *parameters).square().sum()

    for_each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(tuple(parameters), x)
    for i, clip in enumerate(x):
        alone = torch.func.grad(loss)(tuple(parameters), clip)
        torch.testing.assert_close(tuple(gradient[i] for gradient in for_each), alone, atol=1e-4, rtol=1e-4)


def test_gradients_of_an_ensemble_and_of_every_output_at_once():
    case = make_operands((1, 4, 2, 2, 3), (3, 3, 3))
    x, weight, *parameters = case.tensors

    def loss(weight):
        return (dwconv3d_layernorm(x, weight, *parameters) * case.dz).sum()

    ensemble = torch.stack([weight, 2 * weight])
    for_each = torch.func.vmap(torch.func.grad(loss))(ensemble)
    alone = torch.stack([torch.func.grad(loss)(weight) for weight in ensemble])
    torch.testing.assert_close(for_each, alone, atol=1e-4, rtol=1e-4)
    one_by_one = torch.autograd.functional.jacobian(dwconv3d_layernorm, case.tensors)
    at_once = torch.autograd.functional.jacobian(dwconv3d_layernorm, case.tensors, vectorize=True)
    torch.testing.assert_close(at_once, one_by_one, atol=1e-4, rtol=1e-4)


def test_forward_mode_without_gradients():
    case = make_operands((1, 8, 2, 5, 6), (3, 7, 7), dtype=torch.float64)
    x, *parameters = case.tensors
    with torch.no_grad():
        _, tangent = torch.func.jvp(lambda x: dwconv3d_layernorm(x, *parameters), (x,), (case.dz,))
        step = 1e-5 * case.dz
        difference = dwconv3d_layernorm(x + step, *parameters) - dwconv3d_layernorm(x - step, *parameters)
    torch.testing.assert_close(tangent, difference / 2e-5, atol=1e-6, rtol=1e-6)


def test_on_the_meta_device_it_has_shapes_alone():
    tensors = [tensor.detach().to("meta").requires_grad_() for tensor in operands().tensors]
    z = dwconv3d_layernorm(*tensors)
    z.sum().backward()
    assert all(tensor.is_meta for tensor in (z, *(tensor.grad for tensor in tensors)))
    assert [tensor.grad.shape for tensor in tensors] == [tensor.shape for tensor in tensors]
    assert explain(tensors[0]).reason == "the tensor is on meta, and Triton needs a GPU"


def test_activation_checkpointing_gives_the_same_gradients():
    case = operands()
    plain = case.run(dwconv3d_layernorm)
    again = case.run(lambda *args: checkpoint(dwconv3d_layernorm, *args, use_reentrant=False))
    for name in plain:
        assert torch.equal(plain[name], again[name]), name
