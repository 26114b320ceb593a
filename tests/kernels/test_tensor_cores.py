"""How problems are spread over programs on tensor cores; `test_gpu.py` tests what they compute."""

import pytest
import torch
from dover_kernels.dwconv3d_layernorm import tensor_cores
from dover_kernels.dwconv3d_layernorm.tensor_cores import COLUMNS, CONVOLUTION, STRIPS

H100 = 132, 227 * 1024  # multiprocessors, and bytes of shared memory that a program may have
A10 = 72, 99 * 1024


@pytest.mark.parametrize(("multiprocessors", "shared"), [H100, A10])
@pytest.mark.parametrize("K", [3, 5, 7])
@pytest.mark.parametrize("k_t", [1, 3, 5, 7])
@pytest.mark.parametrize("C", [8, 24, 40, 96, 768, 776])
def test_every_layer_has_configurations_that_fit(C, k_t, K, multiprocessors, shared):
    configs = tensor_cores.candidates(C, k_t, K, shared)
    assert configs
    for config in configs:
        assert C % config.BC == 0
        assert config.BC % config.num_warps == 0, "a warp owns whole channels"
        assert config.shared_bytes(K) <= shared
    for shape in ((1, C, 64, 160, 160), (1, C, 32, 7, 7), (2, C, 1, 1, 1)):
        assert tensor_cores.choose(configs, torch.Size(shape), K, multiprocessors) in configs


def test_few_frames_are_spread_over_more_programs_than_many():
    configs = tensor_cores.candidates(768, 1, 7, H100[1])
    many = tensor_cores.choose(configs, torch.Size((1, 768, 64, 160, 160)), 7, H100[0])
    few = tensor_cores.choose(configs, torch.Size((1, 768, 32, 7, 7)), 7, H100[0])
    assert many == CONVOLUTION[1][0]
    assert few.BC < many.BC


@pytest.mark.parametrize("shape", [(1, 96, 64, 160, 160), (1, 96, 32, 56, 56), (3, 96, 5, 13, 9), (1, 96, 1, 1, 1)])
def test_programs_take_every_strip(shape):
    config = CONVOLUTION[1][0]
    cut = tensor_cores.cut(config, torch.Size(shape), 7, H100[0])
    assert cut.rows * cut.height >= shape[3]
    assert cut.columns * COLUMNS >= shape[4]
    assert tensor_cores.programs(config, cut, 96) * STRIPS >= cut.count * (96 // config.BC)


def test_weights_of_more_frames_than_registers_hold_are_left_to_the_march():
    assert max(CONVOLUTION) == tensor_cores.MOST_FRAMES
