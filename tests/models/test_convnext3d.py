"""The backbone: its form, its shapes, and the plain formula of a block."""

import pytest
import torch
import torch.nn.functional as F

from dover_eval import ConvNeXt3D, DOVERConfig
from dover_eval.models.convnext3d import ConvNeXtBlock3D
from dover_eval.models.signals import video_signals

SMALL = DOVERConfig(dims=(8, 16, 24, 32), depths=(3, 1, 2, 1))


def test_tiny_is_the_specification():
    backbone = ConvNeXt3D(DOVERConfig.resolve("tiny"))
    stem = backbone.downsample_layers[0][0]
    assert (stem.in_channels, stem.out_channels, stem.kernel_size, stem.stride) == (3, 96, (1, 4, 4), (1, 4, 4))
    assert [len(stage) for stage in backbone.stages] == [3, 3, 9, 3]
    assert [stage[0].dwconv.in_channels for stage in backbone.stages] == [96, 192, 384, 768]
    assert [block.dwconv.kernel_size for block in backbone.stages[0]] == [(1, 7, 7), (3, 7, 7), (1, 7, 7)]


def test_block_is_the_formula():
    block = ConvNeXtBlock3D(8, 3, layer_scale_init=0.7)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 8, 4, 9, 10)
    y = F.conv3d(x, block.dwconv.weight, block.dwconv.bias, padding=(1, 3, 3), groups=8).permute(0, 2, 3, 4, 1)
    y = F.layer_norm(y, (8,), block.norm.weight, block.norm.bias, 1e-6)
    y = F.linear(
        F.gelu(F.linear(y, block.pwconv1.weight, block.pwconv1.bias)), block.pwconv2.weight, block.pwconv2.bias
    )
    torch.testing.assert_close(block(x), x + (block.gamma * y).permute(0, 4, 1, 2, 3))


@pytest.mark.parametrize("dim", [8, 128], ids=["of as many values as a slab has", "of as many places"])
def test_a_block_that_records_no_gradient_works_slab_by_slab(dim):
    block = ConvNeXtBlock3D(dim, 1, layer_scale_init=0.7)
    x = torch.randn(2, dim, 3, 80, 70)
    places = []
    block.pwconv1.register_forward_pre_hook(lambda _, inputs: places.append(inputs[0].shape[:-1].numel()))
    whole = block(x).detach()
    with torch.no_grad():
        torch.testing.assert_close(block(x), whole)
    assert places == [33_600, 32_768, 832] if dim == 8 else places == [33_600, *[2048] * 16, 832]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 32, 32), (1, 1, 1)), ((3, 67, 95), (3, 2, 2)), ((8, 64, 96), (8, 2, 3))],
    ids=["smallest", "odd", "even"],
)
def test_shapes_round_down(shape, expected):
    assert ConvNeXt3D(SMALL)(torch.randn(2, 3, *shape)).shape == (2, 32, *expected)


@pytest.mark.parametrize("shape", [(1, 3, 4, 31, 32), (1, 4, 4, 32, 32), (1, 3, 0, 32, 32), (3, 4, 32, 32)])
def test_frames_too_small_are_refused_with_their_shape(shape):
    with pytest.raises(ValueError, match=r"expected frames \(B,3,T,H,W\).*got \(" + str(shape[0])):
        ConvNeXt3D(SMALL)(torch.zeros(shape))


def test_a_stem_of_two_frames_needs_two():
    with pytest.raises(ValueError, match="T >= 2"):
        ConvNeXt3D(SMALL.replace(stem_kernel=(2, 4, 4)))(torch.zeros(1, 3, 1, 32, 32))


def test_drop_path_keeps_the_mean_and_is_off_in_eval():
    block = ConvNeXtBlock3D(8, 1, layer_scale_init=1.0, drop_path=0.5)
    x = torch.randn(64, 8, 1, 7, 7)
    full = block.eval()(x) - x
    dropped = block.train()(x) - x
    kept = dropped.abs().amax((1, 2, 3, 4)) > 0
    assert 0 < kept.sum() < 64
    torch.testing.assert_close(dropped[kept], 2 * full[kept])


def test_signals_tell_sharpness_and_flicker():
    still = torch.randn(1, 3, 1, 16, 16).expand(1, 3, 5, 16, 16)
    planes = video_signals(still, ("rgb", "highpass", "difference", "global_difference"))
    assert planes.shape == (1, 6, 5, 16, 16)
    assert planes[:, 3].abs().mean() > 0.1
    assert planes[:, 4:].abs().max() == 0
    flicker = still + torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0]).view(1, 1, 5, 1, 1)
    torch.testing.assert_close(
        video_signals(flicker, ("rgb", "global_difference"))[0, 3, :, 0, 0], torch.tensor([1.0, 1.0, -1.0, 1.0, -1.0])
    )
    torch.testing.assert_close(
        video_signals(still, ("rgb", "highpass"))[0, 3].mean(), torch.tensor(0.0), atol=0.05, rtol=0
    )


@pytest.mark.parametrize("slice_frames", [1, 3, 8])
@pytest.mark.parametrize("drop_path_rate", [0.0, 0.5])
def test_backward_in_slices_of_frames_gives_the_same(
    small_config: DOVERConfig, slice_frames: int, drop_path_rate: float
) -> None:
    backbone = ConvNeXt3D(small_config.replace(drop_path_rate=drop_path_rate)).train()

    def run(checkpoint_frames: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(0)
        backbone.checkpoint_frames = checkpoint_frames
        frames = torch.randn(4, 3, 7, 32, 32).requires_grad_()
        features = backbone(frames)
        features.square().sum().backward()
        assert frames.grad is not None
        return features.detach(), frames.grad

    for found, expected in zip(run(slice_frames), run(None), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_shapes_are_known_without_weights_or_memory(small_config: DOVERConfig) -> None:
    with torch.device("meta"):
        features = ConvNeXt3D(small_config)(torch.empty(2, 3, 64, 1280, 640))
    assert features.shape == (2, small_config.dims[-1], 64, 40, 20)
    assert features.is_meta
