"""The teachers that run here, on real files: each falls with the defects that it is for."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dover_eval.distillation import Linear, Logistic
from dover_eval.distillation.teacher import parse_scale
from dover_eval.distortions import distort
from dover_eval.teachers import TEACHERS
from dover_eval.video.decode import VideoError, all_frames, decode_clip

CLIPS = Path(__file__).parents[2] / "examples" / "clips"


def frames_of(name: str) -> np.ndarray:
    return np.stack([frame.permute(1, 2, 0).numpy() for frame, _ in all_frames(CLIPS / name)])


@pytest.fixture
def spoil(write_video, tmp_path):
    """Writes an example clip spoiled at some strength into a file, H.264 at a low rate factor."""

    def write(defect: str, strength: float, scale: int = 1) -> str:
        frames = frames_of("star_clean.mp4").repeat(scale, axis=1).repeat(scale, axis=2)
        spoiled = distort(frames, defect, strength, np.random.default_rng(0))
        return str(write_video(spoiled, f"{defect}-{strength}.mp4", rate=8))

    return write


# Scales


def test_a_linear_scale_refuses_what_is_beyond_it():
    assert Linear(0, 10).mos(2.5) == 2
    assert Linear(1, -1).mos(1) == 1  # the worst may be the greater number
    assert Linear(1, -1).mos(-1) == 5
    assert Linear(0, 1 / 3).mos(0.33333334) == 5  # rounded
    with pytest.raises(ValueError, match="11 is beyond the scale, worst 0 to best 10"):
        Linear(0, 10).mos(11)
    with pytest.raises(ValueError, match="two different numbers"):
        Linear(1, 1)


def test_a_logistic_scale_takes_any_number():
    scale = Logistic(center=2, width=3)
    assert scale.mos(2) == 3
    assert scale.mos(5) == pytest.approx(1 + 4 / (1 + np.exp(-1)))
    assert 1 <= scale.mos(-1e9) < scale.mos(0) < scale.mos(1e9) <= 5
    with pytest.raises(ValueError, match="positive width"):
        Logistic(0, 0)


def test_a_scale_of_whole_numbers_is_the_same_one():
    assert repr(Linear(0, 10)) == repr(Linear(0.0, 10.0))  # and has the same fingerprint


def test_scales_are_read_as_they_are_written():
    assert parse_scale("0:1") == Linear(0, 1)
    assert parse_scale("logistic:-1.5:2") == Logistic(-1.5, 2)
    for wrong in ("", "1", "a:b", "0:1:2", "logistic:1"):
        with pytest.raises(ValueError, match="expected WORST:BEST"):
            parse_scale(wrong)


# Streaming


def test_streaming_gives_every_frame_once(write_video, moving_frames):
    path = write_video(moving_frames)
    streamed = list(all_frames(path))
    assert [time for _, time in streamed] == pytest.approx(np.arange(12) / 8)
    decoded = decode_clip(path, 12).frames
    assert torch.equal(torch.stack([frame for frame, _ in streamed]), decoded)


def test_streaming_refuses_what_decoding_refuses(tmp_path):
    (tmp_path / "notes.mp4").write_text("not a clip")
    whole = (CLIPS / "star_clean.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name in ("notes.mp4", "cut.mp4", "gone.mp4"):
        with pytest.raises(VideoError, match=name):
            list(all_frames(tmp_path / name))


# Full reference


@pytest.mark.parametrize("metric", ["ssim", "ms-ssim"])
def test_similarity_falls_with_every_defect_of_the_frame(spoil, metric):
    pytest.importorskip("pytorch_msssim")
    from dover_eval.teachers.reference import FullReference

    scale = 2 if metric == "ms-ssim" else 1
    table = Path(spoil("blur", 0, scale)).parent / "references.csv"
    defects = ("blur", "noise", "compress")
    names = [f"{defect}-{strength}.mp4" for defect in defects for strength in (0, 0.3, 1)]
    table.write_text("video_name,reference\n" + "".join(f"{name},blur-0.mp4\n" for name in names))
    teacher = FullReference(str(table), metric=metric, frames=2)
    assert teacher(str(table.parent / "blur-0.mp4"), "") == {"Traditional": 25.0}
    for defect in defects:
        light, heavy = (teacher(spoil(defect, strength, scale), "")["Traditional"] for strength in (0.3, 1))
        assert 25 > light > heavy > 0


def test_the_original_is_found_and_fits(spoil, write_video, tmp_path):
    pytest.importorskip("pytorch_msssim")
    from dover_eval.teachers.reference import FullReference

    teacher = FullReference(str(CLIPS), metric="ssim")
    assert teacher(str(CLIPS / "heart_clean.mp4"), "")["Traditional"] == 25
    with pytest.raises(ValueError, match=r"other\.mp4 has no original .*other\.mp4"):
        teacher(str(tmp_path / "other.mp4"), "")
    frames = frames_of("star_clean.mp4")
    short = write_video(frames[:20], "star_clean.mp4", rate=8)
    with pytest.raises(ValueError, match=r"lasts 2\.50 s, and its original .* s"):
        teacher(str(short), "")
    rate = len(frames) / decode_clip(CLIPS / "star_clean.mp4", 1).duration
    small = write_video(np.ascontiguousarray(frames[:, ::2, ::2]), "star_clean.mp4", rate=round(rate))
    assert 0 < teacher(str(small), "")["Traditional"] < 25  # of another size: compared at the original's
    with pytest.raises(ValueError, match="is 160x160: ms-ssim needs 161 pixels a side, and ssim any number"):
        FullReference(str(CLIPS))(str(CLIPS / "heart_clean.mp4"), "")
    with pytest.raises(ValueError, match="expected a metric of ssim, ms-ssim"):
        FullReference(str(CLIPS), metric="psnr")


def test_an_original_is_found_by_its_folder_or_by_the_table_and_never_another_ones(spoil, tmp_path):
    pytest.importorskip("pytorch_msssim")
    from dover_eval.teachers.reference import FullReference

    for folder in ("one", "two"):
        for place in (f"clips/{folder}", f"originals/{folder}"):
            (tmp_path / place).mkdir(parents=True)
            name = "heart_clean" if folder == "one" else "star_clean"
            shutil.copy(CLIPS / f"{name}.mp4", tmp_path / place / "0.mp4")
    table = tmp_path / "originals.csv"
    lines = ["video_name,reference", "one/0.mp4,originals/one/0.mp4", "two/0.mp4,originals/two/0.mp4"]
    table.write_text("\n".join(lines))
    for references in (tmp_path / "originals", table):
        teacher = FullReference(str(references), metric="ssim", frames=2)
        for folder in ("one", "two"):
            clip = str(tmp_path / "clips" / folder / "0.mp4")
            assert teacher(clip, "")["Traditional"] == 25
            assert teacher.inputs(clip) == [tmp_path / "originals" / folder / "0.mp4"]
    table.write_text("\n".join([*lines, "one/0.mp4,originals/two/0.mp4"]))
    with pytest.raises(ValueError, match=r"line 4: a second original for one/0\.mp4"):
        FullReference(str(table))


# Steadiness


@pytest.mark.parametrize("teacher", ["FrameDifference", "OpticalFlow"])
@pytest.mark.parametrize("defect", ["flicker", "drop", "shuffle", "jitter", "freeze"])
def test_steadiness_falls_with_every_defect_of_time(spoil, teacher, defect):
    if teacher == "OpticalFlow":
        pytest.importorskip("cv2")
    from dover_eval.teachers import temporal

    judge = getattr(temporal, teacher)()
    steady, worse, worst = (judge(spoil(defect, strength), "")["Temporal"] for strength in (0, 0.5, 1))
    assert steady > 0.8
    assert steady - worse > 0.1
    assert steady - worst > 0.3
    assert worst > 0


def test_a_pan_a_fade_and_a_still_are_steady(write_video):
    from dover_eval.teachers.temporal import FrameDifference

    rng = np.random.default_rng(0)
    wide = np.kron(rng.integers(40, 200, (15, 60, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    pan = np.stack([wide[:, 4 * t : 4 * t + 160] for t in range(40)])
    fade = np.stack([(wide[:, :160] * (1 - t / 60)).astype(np.uint8) for t in range(40)])
    still = np.repeat(wide[None, :, :160], 40, axis=0)
    for name, frames in (("pan", pan), ("fade", fade), ("still", still)):
        findings = FrameDifference().findings(str(write_video(frames, f"{name}.mp4")))
        assert findings["stutter"] == 0, name
        assert findings["flicker"] < 0.6, name
        assert findings["reversal"] < 0.02, name


def test_stutter_is_the_share_of_repeated_frames(write_video):
    from dover_eval.teachers.temporal import FrameDifference

    frames = np.repeat(frames_of("heart_clean.mp4")[:16], 2, axis=0)  # every frame twice
    assert FrameDifference().findings(str(write_video(frames)))["stutter"] == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("teacher", ["FrameDifference", "OpticalFlow"])
def test_a_clip_that_stands_still_for_nearly_all_of_its_time_is_not_steady(write_video, teacher):
    if teacher == "OpticalFlow":
        pytest.importorskip("cv2")
    from dover_eval.teachers import temporal

    moving = frames_of("heart_clean.mp4")[:4]
    frozen = np.concatenate([moving, np.repeat(moving[-1:], 44, axis=0)])
    assert getattr(temporal, teacher)()(str(write_video(frozen)), "")["Temporal"] < 0.3


def test_a_slow_clip_with_one_cut_does_not_stutter(write_video):
    from dover_eval.teachers.temporal import FrameDifference

    across, time = np.arange(96)[None, None, :, None], np.arange(40)[:, None, None, None]
    soft = 100 + 20 * np.sin((across + time) / 30) + 60 * (time >= 20)  # changes by 0.4 a frame, of 255
    path = write_video(soft.repeat(96, 1).repeat(3, 3).astype(np.uint8))
    assert FrameDifference().findings(str(path))["stutter"] == 0


@pytest.mark.parametrize("light", [0, 0.02])
def test_shaking_is_seen_although_the_clip_begins_in_the_dark(write_video, light):
    pytest.importorskip("cv2")
    from dover_eval.teachers.temporal import OpticalFlow

    shaken = distort(frames_of("star_clean.mp4"), "jitter", 1, np.random.default_rng(0))
    jerk = OpticalFlow().findings(str(write_video(shaken, "a.mp4")))["jerk"]
    shaken[:2] = (shaken[:2] * light).astype(np.uint8)
    assert OpticalFlow().findings(str(write_video(shaken, "b.mp4")))["jerk"] > 0.8 * jerk > 1


def test_a_picture_too_small_for_the_flow_is_refused(write_video, moving_frames):
    pytest.importorskip("cv2")
    from dover_eval.teachers.temporal import OpticalFlow

    with pytest.raises(ValueError, match="64x24, expected at least 32 pixels a side"):
        OpticalFlow()(str(write_video(np.zeros((4, 24, 64, 3), np.uint8))), "")


# The classifier


def test_prompts_find_their_pictures(write_video):
    """scikit-learn's two photographs, of a flower and of a temple, as panned clips."""
    from sklearn.datasets import load_sample_images

    from dover_eval.teachers.classifier import ImageNetAlignment

    temple, flower = (
        str(write_video(np.stack([picture[:400, 8 * t : 8 * t + 400] for t in range(8)]), name))
        for picture, name in zip(load_sample_images().images, ("temple.mp4", "flower.mp4"), strict=True)
    )
    teacher = ImageNetAlignment(frames=4)
    score = lambda path, prompt: teacher(path, prompt)["Alignment"]
    for prompt in ("a red flower in a garden", "a bee on a flower"):
        assert score(flower, prompt) > score(temple, prompt) + 0.5
    for prompt in ("a temple with a curved roof", "an old palace under a blue sky"):
        assert score(temple, prompt) > score(flower, prompt)
    assert score(flower, "a flower") == score(flower, "a flower")
    assert set(teacher.identity) == {"classifier", "text_encoder"}


# All of them


@pytest.mark.parametrize("name", TEACHERS)
def test_every_listed_teacher_is_there_and_declares_its_scales(name):
    import importlib

    module, _, attribute = name.partition(":")
    teacher = getattr(importlib.import_module(module), attribute)  # without the package that it adapts
    assert teacher.scales
    assert all(isinstance(scale, Linear | Logistic) for scale in teacher.scales.values())
    assert any(aspect in TEACHERS[name].judges for aspect in teacher.scales)
