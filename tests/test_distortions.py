"""Distortions: nothing at strength zero, more at more, and each of the kind that it says."""

import numpy as np
import pytest

from dover_eval.distortions import ASPECT_OF, distort, h264, shift
from dover_eval.training.synthetic import Scene, draw

NAMES = [*ASPECT_OF]


@pytest.fixture(scope="module")
def frames():
    return draw(Scene("red", "star", "left", "bricks", "one"), np.random.default_rng(0), num_frames=12, size=113)


def difference(a, b):
    return np.abs(a.astype(float) - b).mean()


@pytest.mark.parametrize("name", NAMES)
def test_strength_rises_from_nothing(frames, name):
    weak, strong = (
        np.mean([difference(distort(frames, name, s, np.random.default_rng(i)), frames) for i in range(4)])
        for s in (0.5, 1.0)
    )
    untouched = difference(distort(frames, name, 0.0, np.random.default_rng(0)), frames)
    assert untouched < weak < strong
    assert untouched == 0 or name == "compress"  # a codec is never lossless


@pytest.mark.parametrize("name", NAMES)
def test_shape_and_input_are_kept(frames, name):
    before = frames.copy()
    spoiled = distort(frames, name, 0.7, np.random.default_rng(0))
    assert spoiled.shape == frames.shape
    assert spoiled.dtype == np.uint8
    assert np.array_equal(frames, before)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [1, 2])
def test_clips_of_a_frame_or_two_can_be_spoiled(frames, name, count):
    assert distort(frames[:count], name, 1.0, np.random.default_rng(0)).shape == frames[:count].shape


def test_sharpness_and_grain_move_the_right_way(frames):
    detail = lambda x: np.abs(np.diff(x.astype(float), axis=2)).mean()
    assert detail(distort(frames, "blur", 0.8, np.random.default_rng(0))) < 0.6 * detail(frames)
    assert detail(distort(frames, "downscale", 0.8, np.random.default_rng(0))) < 0.8 * detail(frames)
    assert detail(distort(frames, "noise", 0.8, np.random.default_rng(0))) > 1.4 * detail(frames)


def test_temporal_defects_use_only_frames_that_were_there(frames):
    for name in ("drop", "shuffle"):
        spoiled = distort(frames, name, 1.0, np.random.default_rng(0))
        assert all(any(np.array_equal(frame, original) for original in frames) for frame in spoiled)
    shuffled = distort(frames, "shuffle", 1.0, np.random.default_rng(0))
    assert sorted(map(bytes, shuffled)) == sorted(map(bytes, frames))


def test_flicker_changes_brightness_and_nothing_else(frames):
    levels = distort(frames, "flicker", 1.0, np.random.default_rng(0)).mean(axis=(1, 2, 3))
    assert levels.std() > 8 * frames.mean(axis=(1, 2, 3)).std()


def test_banding_leaves_few_shades(frames):
    assert len(np.unique(distort(frames, "banding", 1.0, np.random.default_rng(0)))) <= 4


def test_a_freeze_holds_one_picture_and_then_goes_on_where_the_clip_would_be(frames):
    frozen = distort(frames, "freeze", 1.0, np.random.default_rng(1))
    held = [t for t in range(len(frames)) if not np.array_equal(frozen[t], frames[t])]
    assert len(held) == 9  # three quarters of twelve
    assert all(np.array_equal(frozen[t], frames[held[0] - 1]) for t in held)


def test_h264_is_real_and_takes_odd_sizes(frames):
    assert h264(frames, 20).shape == frames.shape
    assert difference(h264(frames, 51), frames) > 3 * difference(h264(frames, 18), frames)


def test_h264_gives_the_same_frames_the_same_bits_whatever_lies_in_memory():
    noise = np.random.default_rng(0).integers(0, 64, (4, 176, 176, 3)) + np.linspace(0, 150, 176)[:, None, None]
    clip = noise.astype(np.uint8)
    first = h264(clip, 20)
    for i in range(40):
        litter = [np.full(7919 * (i + j), 255, np.uint8) for j in range(5)]
        assert np.array_equal(h264(clip, 20), first), len(litter)


def test_strengths_out_of_range_are_refused(frames):
    with pytest.raises(ValueError, match=r"in \[0,1\], got 1.5"):
        distort(frames, "blur", 1.5, np.random.default_rng(0))


def test_a_shift_looks_further_down_and_right_and_repeats_the_edge():
    rows, columns = np.mgrid[:4, :5].astype(np.uint8)
    frame = np.stack([rows, columns, rows], axis=-1)
    moved = shift(frame, 1, -2)
    assert moved[:, 0, 0].tolist() == [1, 2, 3, 3]
    assert moved[0, :, 1].tolist() == [0, 0, 0, 1, 2]
