"""Drawn clips: what the caption says is what is to be seen."""

import numpy as np
import pytest

from dover_eval.training.synthetic import CHOICES, COLOURS, Scene, caption, draw, is_held_out, random_scene

SCENE = Scene("red", "square", "left", "plain", "one")


def rng(seed=0):
    return np.random.default_rng(seed)


def where(frame, colour):
    """The pixels near a colour, as (rows, columns)."""
    return np.nonzero(np.abs(frame.astype(int) - COLOURS[colour]).max(axis=2) < 60)


def test_frames_have_the_asked_form_and_the_same_seed_the_same_pixels():
    frames = draw(SCENE, rng(), num_frames=5, size=112)
    assert frames.shape == (5, 112, 112, 3)
    assert frames.dtype == np.uint8
    assert np.array_equal(frames, draw(SCENE, rng(), num_frames=5, size=112))
    assert not np.array_equal(frames, draw(SCENE, rng(1), num_frames=5, size=112))


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1), ("still", 1, 0)]
)
def test_objects_move_as_the_caption_says(motion, axis, sign):
    frames = draw(Scene("red", "circle", motion, "plain", "one"), rng(), num_frames=6)
    before, after = (where(frame, "red")[axis].mean() for frame in (frames[0], frames[-1]))
    moved = after - before
    assert np.sign(moved) == sign if sign else abs(moved) < 2


@pytest.mark.parametrize(("motion", "sign"), [("growing", 1), ("shrinking", -1)])
def test_objects_change_size_as_the_caption_says(motion, sign):
    frames = draw(Scene("red", "circle", motion, "plain", "one"), rng(), num_frames=6)
    first, last = (len(where(frame, "red")[0]) for frame in (frames[0], frames[-1]))
    assert sign * (last - first) > 100


def test_numbers_are_drawn():
    from scipy.ndimage import label

    for count, number in enumerate(("one", "two", "three"), start=1):
        frames = draw(Scene("blue", "circle", "still", "plain", number), rng(3), num_frames=1)
        mask = np.zeros(frames.shape[1:3], bool)
        mask[where(frames[0], "blue")] = True
        assert label(mask)[1] == count


@pytest.mark.parametrize("background", CHOICES["background"])
@pytest.mark.parametrize("size", [112, 177])
def test_every_background_is_drawn(background, size):
    frames = draw(Scene("pink", "star", "spinning", background, "two"), rng(), num_frames=2, size=size)
    assert frames.std() > 5


def test_captions_name_every_attribute_in_many_words():
    texts = {caption(SCENE, rng(seed)) for seed in range(60)}
    assert len(texts) > 15
    assert all("red" in text and ("square" in text or "box" in text) for text in texts)
    assert caption(Scene("orange", "cross", "still", "sky", "two"), rng(4)).count("orange") == 1


def test_held_out_scenes_are_never_trained_on():
    generator = rng()
    assert all(is_held_out(random_scene(generator, held_out=True)) for _ in range(20))
    assert not any(is_held_out(random_scene(generator)) for _ in range(200))
