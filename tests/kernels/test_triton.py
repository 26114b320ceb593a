"""The Triton kernels, against the reference in fp64: by the interpreter, in the process of `test_interpreter.py`,
or on a GPU. Interpreted shapes are as small as their point allows."""

import dataclasses

import pytest
import torch
from dover_kernels import dwconv3d_layernorm, explain
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from .conftest import INTERPRETED, Operands, make_operands, relative_errors

if INTERPRETED:
    DEVICES = ["cpu"]
else:
    DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)]
    if not torch.cuda.is_available():
        pytest.skip("no GPU; the interpreter runs these in test_interpreter.py", allow_module_level=True)

pytestmark = pytest.mark.parametrize("device", DEVICES)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
# Gradients sum what rounded intermediates (y and dy in the I/O dtype) give.
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True)
def on_triton(monkeypatch):
    monkeypatch.setenv("DOVER_KERNELS", "triton")


@pytest.fixture
def tile(monkeypatch):
    """Fixes the configuration of every kernel, which the interpreter needs small."""
    from dover_kernels.dwconv3d_layernorm import launch

    def fix(R: int, BP: int, BC: int, NC: int = 1) -> None:
        def candidates(role, *_key):
            return [launch.Tile(R, BP, BC, NC if role in ("inference", "training") else 1)]

        monkeypatch.setattr(launch, "candidates", candidates)

    return fix


def assert_agrees(got, operands: Operands) -> None:
    errors = relative_errors(got, operands.oracle())
    dtype = operands.tensors[0].dtype
    assert errors.pop("z") < TOLERANCE[dtype], errors
    assert max(errors.values()) < GRADIENT_TOLERANCE[dtype], errors


# shape (B,C,T,H,W), kernel, tile (R, BP, BC, NC)
SHAPES = {
    "strips_divide_the_row": ((1, 8, 2, 4, 6), (3, 7, 7), (3, 4, 8)),
    "strips_overhang_the_row": ((2, 16, 1, 5, 7), (1, 7, 7), (4, 4, 8)),
    "all_channels_in_a_program": ((1, 24, 1, 3, 4), (1, 7, 7), (3, 2, 8, 3)),
    "chunk_of_8_in_40_channels": ((1, 40, 1, 2, 3), (1, 7, 7), (3, 1, 8)),
    "fewer_frames_than_taps": ((2, 8, 2, 2, 3), (5, 3, 3), (3, 4, 8)),
    "one_frame": ((2, 8, 1, 3, 3), (3, 7, 7), (3, 2, 8)),
    "one_position": ((1, 8, 1, 1, 1), (1, 7, 7), (3, 2, 8)),
    "nine_taps_in_time": ((1, 8, 2, 2, 3), (9, 3, 3), (3, 2, 8)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradients_agree_with_fp64(name, device, tile, poisoned):
    shape, kernel, config = SHAPES[name]
    tile(*config)
    operands = make_operands(shape, kernel, device)
    assert_agrees(operands.run(dwconv3d_layernorm), operands)


def test_a_frame_cut_into_strips_agrees_and_keeps_its_bits(device, tile, monkeypatch):
    from dover_kernels.dwconv3d_layernorm import launch

    # 16 channels in chunks of 8 and 4: a LayerNorm that went along would add its sums in the tile's order.
    x, *parameters = make_operands((1, 16, 1, 7, 3), (1, 3, 3), device).tensors
    tile(3, 2, 8)
    whole = dwconv3d_layernorm(x, *parameters)
    cut = launch.Strips.cut
    monkeypatch.setattr(launch.Strips, "cut", lambda frames, H, W, R, rows: cut(frames, H, W, R, 3))
    tile(2, 2, 4)
    assert torch.equal(dwconv3d_layernorm(x, *parameters), whole)
    operands = make_operands((1, 16, 1, 7, 3), (1, 3, 3), device)
    assert_agrees(operands.run(dwconv3d_layernorm), operands)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_dtype_and_precision(dtype, device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 4, 4), (1, 7, 7), device, dtype, parameters=torch.float32)
    got = operands.run(dwconv3d_layernorm)
    assert got["z"].dtype == got["dx"].dtype == dtype
    assert got["dweight"].dtype == got["dln_bias"].dtype == torch.float32
    assert_agrees(got, operands)


def test_a_large_mean_does_not_cancel_the_variance(device, tile):
    tile(3, 4, 8)
    x, weight, bias, *ln = make_operands((1, 8, 1, 2, 3), (1, 3, 3), device).tensors
    operands = Operands((x, weight, bias + 1000, *ln), torch.ones_like(x))
    assert relative_errors(operands.run(dwconv3d_layernorm), operands.oracle())["z"] < 1e-3


def test_the_same_bits_in_every_run(device, tile):
    tile(3, 4, 8)
    operands = make_operands((2, 8, 2, 3, 4), (3, 3, 3), device)
    first, second = operands.run(dwconv3d_layernorm), operands.run(dwconv3d_layernorm)
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("shape", [(0, 8, 2, 4, 4), (2, 8, 0, 4, 4), (2, 8, 2, 0, 4), (2, 8, 2, 4, 0)])
def test_nothing_in_nothing_out(shape, device):
    got = make_operands(shape, (3, 7, 7), device).run(dwconv3d_layernorm)
    assert got["z"].shape == got["dx"].shape == shape
    assert got["dweight"].shape == (8, 1, 3, 7, 7)
    assert not got["dweight"].any()
    assert not got["dbias"].any()


def test_any_memory_format_and_any_strides_of_dz(device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 2, 3, 3), (1, 3, 3), device)
    base = operands.run(dwconv3d_layernorm)
    x, *parameters = operands.tensors
    strided = torch.stack([operands.dz, operands.dz], dim=-1)[..., 0]
    last = x.contiguous(memory_format=torch.channels_last_3d)
    other = Operands((last, *parameters), strided).run(dwconv3d_layernorm)
    for name in base:
        assert torch.equal(base[name], other[name]), name


def test_inference_allocates_no_intermediate(device, tile):
    from dover_kernels.dwconv3d_layernorm.op import forward_op

    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 3, 3), (1, 3, 3), device)
    z, *rest = forward_op(*operands.tensors, 1e-6, False)
    assert [tensor.numel() for tensor in rest] == [0, 0, 0]
    # Training compiles another kernel, of which nobody promises the same bits.
    assert torch.allclose(z, forward_op(*operands.tensors, 1e-6, True)[0], atol=1e-5)


def test_only_the_gradients_that_are_asked_for(device, tile):
    tile(3, 4, 8)
    x, *parameters = make_operands((1, 8, 1, 3, 3), (1, 3, 3), device).tensors
    frozen = dwconv3d_layernorm(x.requires_grad_(), *parameters)
    frozen.sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in parameters)


def test_second_derivative_is_refused(device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 2, 3), (1, 3, 3), device)
    leaves = [tensor.requires_grad_() for tensor in operands.tensors]
    z = dwconv3d_layernorm(*leaves)
    (dx,) = torch.autograd.grad(z.square().sum(), leaves[:1], create_graph=True)
    with pytest.raises(RuntimeError, match=r"no second derivative.*DOVER_KERNELS=reference"):
        dx.sum().backward()


def tangent(function, x, direction):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, direction))).tangent


TRANSFORMS = {
    "forward mode": tangent,
    "jvp": lambda function, x, direction: torch.func.jvp(function, (x,), (direction,)),
    "jvp of vmap": lambda function, x, direction: torch.func.jvp(torch.func.vmap(function), (x[None],), (x[None],)),
    "grad": lambda function, x, direction: torch.func.grad(lambda x: function(x).sum())(x),
    "grad of vmap": lambda function, x, direction: torch.func.grad(lambda x: torch.func.vmap(function)(x).sum())(
        x[None]
    ),
    "forward mode of a gradient": lambda function, x, direction: tangent(
        lambda dz: torch.autograd.grad(function(x.requires_grad_()), x, dz)[0], torch.ones_like(x), direction
    ),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_forward_mode_and_gradients_by_torch_func_are_refused(transform, device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 2, 3), (1, 3, 3), device)
    x, *parameters = operands.tensors
    with pytest.raises(NotImplementedError, match=r"neither forward mode.*DOVER_KERNELS=reference"):
        transform(lambda x: x + dwconv3d_layernorm(x, *parameters), x, operands.dz)


def test_forward_mode_is_refused_where_it_is_compiled(device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 2, 3), (1, 3, 3), device)
    x, *parameters = operands.tensors
    torch.compiler.reset()
    compiled = torch.compile(
        lambda x, dx: torch.func.jvp(lambda x: x + dwconv3d_layernorm(x, *parameters), (x,), (dx,)),
        backend="aot_eager",
    )
    with pytest.raises(NotImplementedError, match="neither forward mode"):
        compiled(x, operands.dz)


def test_torch_func_may_differentiate_what_is_around_it(device, tile):
    tile(3, 4, 8)
    x, *parameters = make_operands((1, 8, 1, 2, 3), (1, 3, 3), device).tensors
    z = dwconv3d_layernorm(x, *parameters)
    gradient = torch.func.grad(lambda scale: (scale * dwconv3d_layernorm(x, *parameters)).sum())(torch.tensor(2.0))
    assert torch.allclose(gradient, z.sum(), atol=1e-4)


def test_opcheck(device, tile):
    from dover_kernels.dwconv3d_layernorm import op

    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 2, 3), (1, 3, 3), device)
    leaves = [tensor.requires_grad_() for tensor in operands.tensors]
    torch.library.opcheck(op.forward_op, (*leaves, 1e-6, True))
    with torch.no_grad():
        _z, y, mean, rstd = op.forward_op(*leaves, 1e-6, True)
    x, weight, bias, gamma, beta = (leaf.detach() for leaf in leaves)
    # Where nothing asks for a gradient: these have none to give, and tracing runs whatever backward there is.
    traced = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    for refuses, arguments in (
        (op.layernorm_backward_op, (operands.dz, y, gamma, mean, rstd)),
        (op.input_gradient_op, (operands.dz, weight)),
        (op.weight_gradient_op, (x, operands.dz, 1, 3)),
    ):
        torch.library.opcheck(refuses, arguments, test_utils=traced)
        asking = (arguments[0].clone().requires_grad_(), *arguments[1:])
        torch.library.opcheck(refuses, asking, test_utils="test_autograd_registration")
    torch.library.opcheck(op.forward_op, (x, weight, bias, gamma, beta, 1e-6, False), test_utils=traced)


def test_compiles_whole_with_the_same_result(device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 3, 3), (1, 3, 3), device)
    backend = "aot_eager" if INTERPRETED else "inductor"
    torch.compiler.reset()
    compiled = torch.compile(dwconv3d_layernorm, fullgraph=True, backend=backend)
    errors = relative_errors(operands.run(compiled), operands.oracle())
    assert max(errors.values()) < 1e-5, errors


def test_one_compiled_function_takes_every_layer(device, tile):
    tile(3, 4, 8)
    torch.compiler.reset()
    compiled = torch.compile(dwconv3d_layernorm, fullgraph=True, backend="aot_eager")
    for C, k_t in ((8, 1), (16, 1), (16, 3)):
        x, *parameters = make_operands((1, C, 1, 2, 3), (k_t, 3, 3), device).tensors
        assert torch.equal(compiled(x, *parameters), dwconv3d_layernorm(x, *parameters)), (C, k_t)


def test_activation_checkpointing_gives_the_same_gradients(device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 3, 3), (1, 3, 3), device)
    plain = operands.run(dwconv3d_layernorm)
    again = operands.run(lambda *args: checkpoint(dwconv3d_layernorm, *args, use_reentrant=False))
    for name in plain:
        assert torch.equal(plain[name], again[name]), name


def test_autocast_casts_x_and_gives_its_dtype_back(device, tile):
    tile(3, 4, 8)
    operands = make_operands((1, 8, 1, 3, 3), (1, 3, 3), device)
    x, *parameters = operands.tensors
    with torch.autocast(device, dtype=torch.bfloat16):
        z = dwconv3d_layernorm(x, *parameters)
    assert z.dtype == torch.bfloat16
    assert torch.equal(z, dwconv3d_layernorm(x.bfloat16(), *parameters))


def test_offsets_beyond_two_to_the_31_elements(device, tile, tmp_path):
    """Rows so long that the second begins 2^31 elements on: one strip at their left end, in sparse files."""
    if device != "cpu":
        pytest.skip("sparse memory is the host's; test_gpu.py holds the tensor that is really as long")
    from dover_kernels.dwconv3d_layernorm import triton_kernels

    C, H, W, R, K = 8, 2, 2**28, 3, 3
    tensors = {}
    for name in ("x", "dy", "y"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(4 * C * H * W)
        tensors[name] = torch.from_file(str(tmp_path / name), shared=True, size=C * H * W, dtype=torch.float32)
    small = make_operands((1, C, 1, H, R + 1), (1, K, K))
    x, weight, bias, gamma, _beta = small.tensors
    views = {name: tensor.view(H, W, C) for name, tensor in tensors.items()}
    views["x"][:, : R + 1] = x[0, :, 0].permute(1, 2, 0)
    views["dy"][:, :R] = small.dz[0, :, 0, :, :R].permute(1, 2, 0)
    taps = weight.reshape(C, -1).t().contiguous()
    sizes = {"T": 1, "H": H, "W": W, "n_rows": 1, "n_columns": 1, "n_strips": 1, "height": H}
    constants = {"C": C, "KT": 1, "K": K, "R": R, "BP": 1, "BC": 8, "EVEN": False}
    triton_kernels.convolution_kernel[(1,)](
        tensors["x"], taps, bias, gamma, gamma, tensors["y"], tensors["y"], taps, taps, eps=1e-6,
        NC=1, FLIP=False, NORM=False, SAVE=True, **sizes, **constants,
    )  # fmt: skip
    want = torch.nn.functional.conv3d(x, weight, bias, padding=(0, 1, 1), groups=C)[0, :, 0, :, :R].permute(1, 2, 0)
    assert torch.allclose(views["y"][:, :R], want, atol=1e-5)
    partial = torch.empty(1, K * K, C)
    triton_kernels.weight_gradient_kernel[(1,)](
        tensors["x"], tensors["dy"], partial, n_slabs=1, **sizes, **constants
    )  # fmt: skip
    dy = small.dz.clone()
    dy[..., R:] = 0
    want = torch.nn.grad.conv3d_weight(x, weight.shape, dy, padding=(0, 1, 1), groups=C)
    assert torch.allclose(partial[0].t().view_as(want), want, atol=1e-4)


def test_the_tuner_takes_the_fastest_configuration_that_is_right(device):
    from bench.registry import Problem
    from bench.tune import Tile, check, fastest

    problem = Problem(1, 8, 1, 2, 6, 1, torch.float32)
    right, faster = Tile(3, 4, 8), Tile(6, 4, 8)
    assert check(problem, "inference", [right, faster], device) == {right: "", faster: ""}
    if device == "cpu":  # a GPU may refuse, and serve this process no more
        too_narrow = Tile(2, 4, 8)  # less than the kernel's reach: its last columns miss their neighbours
        assert check(problem, "inference", [too_narrow], device)[too_narrow].startswith("WrongResult")
    clocks = iter([2.0, 1.0])

    def clock(run):
        run()
        return next(clocks)

    assert fastest("inference", problem, device, [right, faster], clock) == (faster, 1.0)


def test_explain_names_the_path(device):
    answer = explain(make_operands((1, 8, 1, 2, 2), (1, 3, 3), device).tensors[0])
    assert answer.path == "triton"
    assert answer.reason.startswith("DOVER_KERNELS=triton")
    assert dataclasses.is_dataclass(answer)


def test_two_processes_average_their_gradients(device, tmp_path):
    """DistributedDataParallel over gloo: each rank's gradients are the mean over both ranks' clips."""
    if device != "cpu":
        pytest.skip("one GPU; gloo on a CPU shows the same")
    from .distributed import train_step

    torch.multiprocessing.start_processes(train_step, (str(tmp_path),), nprocs=2, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in ranks[0]["averaged"]:
        mean = (ranks[0]["own"][name] + ranks[1]["own"][name]) / 2
        for rank in ranks:
            assert torch.allclose(rank["averaged"][name], mean, rtol=1e-5, atol=1e-6), name
