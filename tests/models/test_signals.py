"""What is told of pixels without learning: flat and frozen shares, light and colour casts."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dover_eval.config import IMAGENET_MEAN, IMAGENET_STD, PRESETS, SIGNALS
from dover_eval.distortions import distort
from dover_eval.models.dover import DOVERModelSimple
from dover_eval.models.signals import (
    EXPOSURE_STATISTICS,
    FLAT,
    FROZEN,
    LIGHT,
    PIXEL_STATISTICS,
    exposure_statistics,
    pixel_statistics,
    video_signals,
)
from tests.conftest import normalised

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def sliding(step: tuple[float, float] = (0.0, 1.5), count: int = 16) -> np.ndarray:
    """A soft blob on a slope of grey, `step` pixels a frame down and right: (T,64,64,3)."""
    rows, columns = np.mgrid[:64, :64]
    frames = []
    for t in range(count):
        y, x = 32 + step[0] * (t - count / 2), 32 + step[1] * (t - count / 2)
        blob = 90 * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 150)
        frames.append(np.repeat((40 + columns + blob)[..., None], 3, axis=2))
    return np.stack(frames).round().astype(np.uint8)


def flat_shares(frames: np.ndarray) -> Tensor:
    return pixel_statistics(normalised(frames), IMAGENET_STD)[0, : len(FLAT)]


def frozen_shares(frames: np.ndarray) -> Tensor:
    return pixel_statistics(normalised(frames), IMAGENET_STD)[0, 2 * len(FLAT) :][: len(FROZEN)]


def test_banding_makes_more_of_a_clip_flat_the_stronger_it_is() -> None:
    clip = sliding()
    shares = [flat_shares(distort(clip, "banding", s, np.random.default_rng(0)))[0].item() for s in STRENGTHS]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0] + 0.3


def test_noise_makes_less_of_it_flat() -> None:
    clip = sliding()
    noisy = distort(clip, "noise", 0.5, np.random.default_rng(0))
    assert (flat_shares(noisy)[:3] < flat_shares(clip)[:3]).all()


def test_shares_of_flat_places_rise_with_the_level_and_are_shares() -> None:
    shares = flat_shares(distort(sliding(), "noise", 0.3, np.random.default_rng(0)))
    assert (shares.diff() > 0).all()
    assert shares[0] > 0
    assert shares[-1] <= 1


def test_a_freeze_shows_as_the_share_of_the_clip_that_it_holds() -> None:
    """Even where it holds the whole of one run, and whichever of them it is."""
    clip = sliding(step=(0.0, 4.0))
    for frozen, share in ((4, 3 / 14), (8, 7 / 14), (11, 9 / 14)):  # of the 14 pairs within runs
        order = [*[0] * frozen, *range(frozen, 16)]
        assert frozen_shares(clip[order])[2].item() == pytest.approx(share, abs=0.02)


def test_nothing_is_frozen_in_a_clip_that_never_moves() -> None:
    assert frozen_shares(sliding(step=(0.0, 0.0)))[2] < 0.01


def exposure(frames: np.ndarray) -> dict[str, Tensor]:
    """The figures by name; of channels three, of casts red or blue less green."""
    told = exposure_statistics(normalised(frames), IMAGENET_MEAN, IMAGENET_STD)[0]
    sizes = [len(LIGHT), 3, 3, 1, 4, 1, 2, 3]
    names = ("darker", "lightest", "darkest", "range", "apart", "saturation", "casts", "any casts")
    return dict(zip(names, told.split(sizes), strict=True))


def test_shares_of_light_are_those_of_the_pixels() -> None:
    clip = sliding()
    below = [(clip < level).mean() for level in LIGHT]
    torch.testing.assert_close(exposure(clip)["darker"], torch.tensor(below, dtype=torch.float32), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    ("defect", "name", "sign"),
    [("darken", "lightest", -1), ("overexpose", "lightest", 1), ("fade", "range", -1), ("tint", "any casts", 1)],
)
def test_light_and_colour_move_with_their_defect(defect: str, name: str, sign: int) -> None:
    values = [
        exposure(distort(sliding(), defect, strength, np.random.default_rng(0)))[name].sum().item()
        for strength in STRENGTHS
    ]
    assert [sign * value for value in values] == sorted(sign * value for value in values)
    assert sign * (values[-1] - values[0]) > 0.1


def test_a_cast_is_told_with_its_colour_even_over_colours() -> None:
    """Of a grey slope with a saturated blob: the blob is no cast, a tint of all is."""
    clip = sliding()
    clip[:, 20:40, 20:40] = (220, 30, 30)
    assert exposure(clip)["any casts"].max() < 0.02
    tinted = np.clip(clip.astype(int) + np.array([0, 0, 30]), 0, 255).astype(np.uint8)
    red, blue = exposure(tinted)["casts"].tolist()
    assert blue > 0.08
    assert abs(red) < 0.03


@pytest.mark.parametrize("shape", [(1, 3, 1, 32, 32), (1, 3, 2, 32, 48), (2, 3, 5, 33, 31)])
def test_odd_and_short_clips_have_finite_figures(shape: tuple[int, ...]) -> None:
    runs = torch.randn(2, *shape)
    assert pixel_statistics(runs, IMAGENET_STD).isfinite().all()
    assert pixel_statistics(runs, IMAGENET_STD).shape == (2, PIXEL_STATISTICS)
    assert exposure_statistics(runs, IMAGENET_MEAN, IMAGENET_STD).isfinite().all()
    assert exposure_statistics(runs, IMAGENET_MEAN, IMAGENET_STD).shape == (2, EXPOSURE_STATISTICS)


def test_gradients_reach_every_frame_and_are_finite_even_where_nothing_moves() -> None:
    for frames in (sliding(), sliding((0, 0))):
        runs = normalised(frames).requires_grad_()
        total = (
            pixel_statistics(runs, IMAGENET_STD).sum() + exposure_statistics(runs, IMAGENET_MEAN, IMAGENET_STD).sum()
        )
        (gradient,) = torch.autograd.grad(total, runs)
        assert gradient.isfinite().all()
        assert (gradient.abs().amax(dim=(0, 2, 4, 5)) > 0).all()


def test_autocast_does_not_round_them() -> None:
    """In bfloat16 a step of one level between neighbours would be lost."""
    model = DOVERModelSimple(PRESETS["nano"].replace(semantic_encoder_name=None)).eval()
    frames = torch.randn(1, 3, 3, 16, 112, 112)
    stages = model.forward_stages(frames)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.moments(stages)
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, model.moments(stages))


def test_planes_of_small_differences_are_the_same_in_half_precision() -> None:
    """Luma is of the order of one, and what is taken from it of hundredths: bfloat16 rounds it by up to a 250th."""
    frames = normalised(sliding(step=(0.0, 0.2)), runs=1)[:, 0]
    exact = video_signals(frames, SIGNALS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(video_signals(frames, SIGNALS), exact)
    half = frames.bfloat16()
    assert torch.equal(video_signals(half, SIGNALS), video_signals(half.float(), SIGNALS).bfloat16())
