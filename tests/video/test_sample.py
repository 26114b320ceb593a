"""Sampling and resizing: the same for a tensor as for a file, for integers as for floats."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from dover_eval import DOVERConfig
from dover_eval.video.sample import join_quarters, prepare_clip, resized, sample_indices, sample_times, squash

CONFIG = DOVERConfig(num_frames=6, frame_size=(32, 40))


@given(length=st.integers(1, 200), count=st.integers(1, 64))
def test_indices_rise_stay_inside_and_spread_evenly(length, count):
    indices = sample_indices(length, count)
    assert len(indices) == count
    assert indices == sorted(indices)
    assert 0 <= indices[0] <= indices[-1] < length
    assert indices[0] <= length / count
    assert indices[-1] >= length - 1 - length / count


def test_times_are_the_middles_of_equal_parts():
    assert sample_times(1.0, 3.0, 4) == [1.25, 1.75, 2.25, 2.75]


def test_the_model_s_shape_and_scale():
    clip = torch.full((9, 3, 20, 30), 255, dtype=torch.uint8)
    prepared = prepare_clip(clip, CONFIG)
    assert prepared.shape == (3, 6, 32, 40)
    expected = (1 - torch.tensor(CONFIG.mean)) / torch.tensor(CONFIG.std)
    torch.testing.assert_close(prepared[:, 0, 0, 0], expected)


def test_uint8_and_float_of_the_same_pixels_agree():
    clip = torch.randint(0, 256, (6, 3, 50, 70), dtype=torch.uint8)
    torch.testing.assert_close(prepare_clip(clip, CONFIG), prepare_clip(clip.float() / 255, CONFIG))


def test_a_large_clip_is_shrunk_without_aliasing():
    checkers = (torch.arange(64)[:, None] + torch.arange(80)) % 2
    clip = (checkers * 255).to(torch.uint8).expand(6, 3, 64, 80)
    spread = prepare_clip(clip, CONFIG) * torch.tensor(CONFIG.std).view(3, 1, 1, 1)
    assert spread.std(dim=(2, 3)).max() < 0.05


def test_gradients_reach_the_pixels():
    clip = torch.rand(6, 3, 20, 30, requires_grad=True)
    prepare_clip(clip, CONFIG).square().sum().backward()
    assert (clip.grad.abs() > 0).float().mean() > 0.9


@given(length=st.integers(1, 200), run=st.integers(2, 16), windows=st.integers(2, 5))
def test_windows_are_runs_of_neighbouring_frames(length, run, windows):
    indices = torch.tensor(sample_indices(length, run * windows, windows)).view(windows, run)
    assert indices.min() >= 0
    assert indices.max() < length
    if length >= run:
        assert (indices.diff(dim=1) == 1).all()
        assert (indices[:, 0].diff() >= 0).all()
    else:  # back and forth: no frame stands still
        assert length == 1 or (indices.diff(dim=1).abs() == 1).all()


def test_windows_cover_a_clip_of_their_length_and_spread_over_a_longer_one():
    assert sample_indices(16, 16, 2) == list(range(16))
    assert sample_indices(100, 16, 2) == [*range(21, 29), *range(71, 79)]


def test_fragments_are_the_pixels_themselves_from_all_over_the_frame():
    config = CONFIG.replace(views=("squash", "fragments"))
    where = torch.arange(90 * 120).view(1, 1, 90, 120).expand(6, 3, 90, 120) / (90 * 120)
    squash, fragments = prepare_clip(where, config)
    assert squash.shape == fragments.shape == (3, 6, 32, 40)
    seen = fragments[0, 0] * config.std[0] + config.mean[0]
    places = (seen * 90 * 120).round().long()
    rows, columns = places // 120, places % 120
    assert (columns[:, 1:10] - columns[:, :9] == 1).all()  # a patch of neighbouring pixels
    assert rows.min() < 15
    assert rows.max() > 75
    assert columns.min() < 15
    assert columns.max() > 105
    assert len(places.unique()) == 32 * 40


def test_small_frames_are_enlarged_before_they_are_cut():
    config = CONFIG.replace(views=("squash", "fragments"))
    assert prepare_clip(torch.rand(6, 3, 9, 11), config).shape == (2, 3, 6, 32, 40)


def test_a_frame_of_the_model_s_size_is_the_same_in_both_views():
    squash, fragments = prepare_clip(torch.rand(6, 3, 32, 40), CONFIG.replace(views=("squash", "fragments")))
    assert torch.equal(squash, fragments)


def test_pictures_are_every_fourth_frame_at_twice_the_size():
    config = CONFIG.replace(num_frames=8, views=("squash", "fragments", "pictures"))
    clip = torch.rand(8, 3, 90, 120)
    prepared = prepare_clip(clip, config)
    assert prepared.shape == (3, 3, 8, 32, 40)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    for group in range(2):
        picture = join_quarters(prepared[2, :, 4 * group : 4 * group + 4])
        torch.testing.assert_close(picture * std + mean, squash(clip[4 * group], (64, 80)))


def test_resized_frames_are_the_nearest_integers():
    frames = torch.randint(0, 256, (2, 3, 12, 18), dtype=torch.uint8)
    assert resized(frames, (12, 18)) is frames
    small = resized(frames, (4, 6))
    assert (small.shape, small.dtype) == ((2, 3, 4, 6), torch.uint8)
    exact = torch.stack([squash(frame.float(), (4, 6)) for frame in frames])
    assert (small - exact).abs().max() <= 0.5
