"""What only a GPU can show: shipped configurations at the model's sizes, CUDA graphs, tensors beyond 2^31 elements.

The kernel's README has the command for a machine with no more than torch, Triton and pytest.
"""

import pytest
import torch
from dover_kernels import dwconv3d_layernorm, explain
from dover_kernels.dwconv3d_layernorm import launch

from .conftest import Operands, make_operands, poison, relative_errors

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"),
    pytest.mark.skipif(launch.INTERPRETED, reason="this is the interpreter's process"),
]
LIMIT = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
STAGES = [(96, 56), (96, 160), (192, 28), (192, 80), (384, 14), (384, 40), (768, 7), (768, 20)]


@pytest.mark.parametrize("k_t", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("C", "side"), STAGES)
def test_every_stage_agrees_with_fp64(C, side, dtype, k_t):
    operands = make_operands((1, C, 4, side, side), (k_t, 7, 7), "cuda", dtype, parameters=torch.float32)
    assert explain(operands.tensors[0]).path == "triton"
    want = operands.oracle(device="cuda")
    errors = relative_errors(operands.run(dwconv3d_layernorm), want)
    assert max(errors.values()) < LIMIT[dtype], errors
    with torch.no_grad():  # inference has configurations of its own
        z = dwconv3d_layernorm(*operands.tensors)
    assert relative_errors({"z": z}, {"z": want["z"]})["z"] < LIMIT[dtype]


@pytest.mark.parametrize("k_t", [1, 3, 9])
@pytest.mark.parametrize("dtype", LIMIT)
def test_odd_frames_that_no_strip_divides_agree_with_fp64(dtype, k_t):
    operands = make_operands((2, 96, 3, 9, 13), (k_t, 7, 7), "cuda", dtype, parameters=torch.float32)
    want = operands.oracle(device="cuda")
    errors = relative_errors(operands.run(dwconv3d_layernorm), want)
    assert max(errors.values()) < LIMIT[dtype], errors
    with torch.no_grad():
        z = dwconv3d_layernorm(*operands.tensors)
    assert relative_errors({"z": z}, {"z": want["z"]})["z"] < LIMIT[dtype]


@pytest.mark.parametrize("kernel", [(5, 7, 7), (3, 5, 5), (1, 3, 3), (7, 3, 3)])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("shape", [(1, 32, 6, 17, 12), (2, 32, 1, 1, 1)])
def test_other_kernels_agree_with_fp64(shape, dtype, kernel):
    operands = make_operands(shape, kernel, "cuda", dtype, parameters=torch.float32)
    errors = relative_errors(operands.run(dwconv3d_layernorm), operands.oracle(device="cuda"))
    assert max(errors.values()) < LIMIT[dtype], errors


@pytest.mark.parametrize("k_t", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("C", "side"), STAGES)
def test_every_run_gives_the_same_bits_and_writes_all_that_it_allocates(C, side, dtype, k_t):
    operands = make_operands((1, C, 4, side, side), (k_t, 7, 7), "cuda", dtype, parameters=torch.float32)
    first = operands.run(dwconv3d_layernorm)
    with poison():
        second = operands.run(dwconv3d_layernorm)
        with torch.no_grad():
            z = dwconv3d_layernorm(*operands.tensors)
    for name in first:
        assert torch.equal(first[name], second[name]), name
    assert z.isfinite().all()


@pytest.mark.parametrize("k_t", [1, 3])
@pytest.mark.parametrize("shape", [(1, 96, 4, 28, 28), (2, 12, 1, 9, 11), (2, 96, 1, 1, 1)])
def test_the_reference_multiplies_fp32_in_fp32_where_tf32_is_allowed(shape, k_t, monkeypatch):
    monkeypatch.setenv("DOVER_KERNELS", "reference")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    x, weight, *rest = (operands := make_operands(shape, (k_t, 7, 7), "cuda")).tensors
    want = operands.oracle(device="cuda")
    frames_first = x.transpose(1, 2).contiguous().transpose(1, 2)
    for laid_out in (x, x.to(memory_format=torch.channels_last_3d), frames_first):
        tensors = (laid_out, weight.to(memory_format=torch.channels_last_3d), *rest)
        errors = relative_errors(Operands(tensors, operands.dz).run(dwconv3d_layernorm), want)
        assert max(errors.values()) < LIMIT[torch.float32], errors
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("C", [40, 80, 776])
def test_channels_outside_of_the_table_are_tuned_and_agree(C):
    operands = make_operands((1, C, 2, 9, 13), (3, 7, 7), "cuda")
    errors = relative_errors(operands.run(dwconv3d_layernorm), operands.oracle())
    assert max(errors.values()) < 1e-5, errors


def test_a_clip_gets_the_same_bits_in_any_batch():
    x, *parameters = make_operands((6, 96, 4, 56, 56), (1, 7, 7), "cuda", torch.bfloat16).tensors
    together = dwconv3d_layernorm(x, *parameters)
    for i in range(6):
        assert torch.equal(dwconv3d_layernorm(x[i : i + 1], *parameters), together[i : i + 1])


def test_a_captured_graph_replays_on_new_input():
    x, *parameters = make_operands((1, 96, 4, 28, 28), (3, 7, 7), "cuda", torch.bfloat16).tensors
    other = torch.randn_like(x)
    want = dwconv3d_layernorm(other, *parameters)  # also the warm-up: compilation cannot be captured
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        z = dwconv3d_layernorm(x, *parameters)
    x.copy_(other)
    graph.replay()
    assert torch.equal(z, want)


def test_a_training_step_takes_no_more_memory_than_eager(monkeypatch):
    def peak() -> int:
        operands = make_operands((1, 96, 8, 56, 56), (1, 7, 7), "cuda", torch.float32)
        operands.run(dwconv3d_layernorm)
        torch.cuda.reset_peak_memory_stats()
        operands.run(dwconv3d_layernorm)
        return torch.cuda.max_memory_allocated()

    ours = peak()
    monkeypatch.setenv("DOVER_KERNELS", "reference")
    assert ours <= peak()


def test_more_than_two_to_the_31_elements():
    """The last frames of a tensor of 2^31 + elements, against the same frames on their own."""
    C, T, side = 96, 900, 160
    if torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GiB")
    assert C * T * side * side > 2**31
    x, *parameters = make_operands((1, C, 4, side, side), (3, 7, 7), "cuda", torch.bfloat16).tensors
    long = torch.zeros((1, C, T, side, side), dtype=x.dtype, device="cuda").to(memory_format=torch.channels_last_3d)
    long[:, :, -4:] = x
    padded = torch.cat([torch.zeros_like(x[:, :, :1]), x], dim=2)
    want = dwconv3d_layernorm(padded, *parameters)[:, :, 1:]
    assert torch.equal(dwconv3d_layernorm(long, *parameters)[:, :, -4:], want)
    dz = torch.zeros_like(long)
    dz[:, :, -4:] = torch.randn_like(x)
    got = Operands((long, *parameters), dz).run(dwconv3d_layernorm)
    short = Operands((padded, *parameters), dz[:, :, -5:].contiguous()).run(dwconv3d_layernorm)
    for name in ("dweight", "dbias", "dln_weight", "dln_bias"):
        assert torch.allclose(got[name].float(), short[name].float(), rtol=2e-2, atol=1e-1), name
    assert torch.equal(got["dx"][:, :, -4:], short["dx"][:, :, 1:])
