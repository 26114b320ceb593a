"""`VideoScorer`: the same bytes, the same score; a failure is a row with its reason; the rest goes on."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dover_eval import DOVERModel, VideoScorer, VideoScores
from dover_eval.config import usual_batch_size
from dover_eval.models.convnext3d import ConvNeXtBlock3D
from dover_eval.scorer import placement
from dover_eval.weights import WeightsError

PROMPTS = ["a red circle", "a dog in the snow, in slow motion", "two birds", "a city at night", "rain"]


@pytest.fixture
def clips() -> list[torch.Tensor]:
    """Five clips of different lengths and sizes, (T,3,H,W) uint8."""
    sizes = [(4, 32, 48), (9, 40, 40), (1, 64, 50), (30, 33, 35), (4, 32, 48)]
    return [torch.randint(0, 256, (t, 3, h, w), dtype=torch.uint8) for t, h, w in sizes]


def test_what_comes_back(small_scorer, clips):
    scores = small_scorer.score(clips, PROMPTS, layout="TCHW")
    assert scores.values.shape == (5, 5)
    assert scores.values.dtype == torch.float32
    assert ((scores.values >= 1) & (scores.values <= 5)).all()
    assert scores.names == ("Traditional", "Alignment", "Aesthetic", "Temporal", "Overall")
    assert torch.equal(scores.overall, scores.values[:, 4])
    assert torch.equal(scores.column("Temporal"), scores.values[:, 3])
    with pytest.raises(ValueError, match=r"expected one of Traditional, .*, Overall, got 'Sound'"):
        scores.column("Sound")
    assert scores.aesthetic_score.shape == scores.technical_score.shape == (5,)
    torch.testing.assert_close(scores.quality_weights.sum(1), torch.ones(5))
    assert scores.errors == (None,) * 5
    assert scores.ok
    rows = json.loads(json.dumps(scores.to_dicts()))
    assert rows[1]["Prompt"] == PROMPTS[1]
    assert rows[1]["Overall"] == pytest.approx(scores.overall[1].item(), abs=1e-6)
    assert scores.fingerprint.digest in repr(scores)
    assert not scores.values.requires_grad


def test_any_order_gives_the_same_bits_one_by_one(small_scorer, clips):
    expected = small_scorer.score(clips, PROMPTS, layout="TCHW", batch_size=1).values
    order = list(range(5))
    random.Random(3).shuffle(order)
    shuffled = small_scorer.score([clips[i] for i in order], [PROMPTS[i] for i in order], layout="TCHW", batch_size=1)
    assert torch.equal(shuffled.values, expected[order])


def test_only_a_cpu_takes_clips_one_by_one():
    assert [usual_batch_size(device) for device in ("cpu", "cuda", "mps")] == [1, 8, 8]


def test_on_a_cpu_clips_go_one_by_one_unless_asked_otherwise(small_scorer, clips, monkeypatch):
    sizes, score_prepared = [], small_scorer.score_prepared
    monkeypatch.setattr(small_scorer, "score_prepared", lambda f, p: sizes.append(len(f)) or score_prepared(f, p))
    small_scorer.score(clips[:3], PROMPTS[:3], layout="TCHW")
    small_scorer.score(clips[:3], PROMPTS[:3], layout="TCHW", batch_size=2)
    assert sizes == [1, 1, 1, 2, 1]


@pytest.mark.parametrize("batch_size", [2, 3, 5, 64])
def test_any_batch_size_gives_the_same_scores(small_scorer, clips, batch_size):
    expected = small_scorer.score(clips, PROMPTS, layout="TCHW", batch_size=1)
    found = small_scorer.score(clips, PROMPTS, layout="TCHW", batch_size=batch_size)
    for name in ("values", "aesthetic_score", "technical_score", "quality_weights"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)


def test_threads_agree_and_leave_grad_mode_alone(small_scorer, clips):
    expected = small_scorer.score(clips, PROMPTS, layout="TCHW", batch_size=1).values

    def work(_):
        found = small_scorer.score(clips, PROMPTS, layout="TCHW", batch_size=1).values
        return torch.equal(found, expected), torch.is_grad_enabled()

    with ThreadPoolExecutor(8) as pool:
        assert all(same and grad for same, grad in pool.map(work, range(16)))


def test_layouts_and_kinds_agree(small_scorer):
    batch = torch.randint(0, 256, (2, 4, 3, 32, 48), dtype=torch.uint8)
    expected = small_scorer.score(batch, PROMPTS[:2], layout="BTCHW").values
    for videos, layout in (
        (batch.transpose(1, 2), "BCTHW"),
        (batch.numpy(), "BTCHW"),
        (np.ascontiguousarray(batch.permute(0, 1, 3, 4, 2).numpy()), "BTHWC"),
        (list(batch), "TCHW"),
        (batch.float() / 255, "BTCHW"),
    ):
        found = small_scorer.score(videos, PROMPTS[:2], layout=layout).values
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_a_file_and_its_frames_score_alike(small_scorer, write_video, moving_frames):
    from dover_eval.video.decode import decode_clip

    path = write_video(moving_frames)
    frames = decode_clip(path, 12).frames
    by_file = small_scorer.score(path, "a square").values
    by_frames = small_scorer.score(frames, "a square", layout="TCHW").values
    assert torch.equal(by_file, by_frames)


def test_one_broken_file_does_not_stop_the_others(small_scorer, write_video, moving_frames, tmp_path):
    good = write_video(moving_frames)
    bad = tmp_path / "bad.mp4"
    bad.write_text("no video")
    seen = []
    scores = small_scorer.score([bad, good, tmp_path / "gone.mp4"], "a square", batch_size=2, progress=seen.append)
    assert [error is None for error in scores.errors] == [False, True, False]
    assert "bad.mp4: cannot be decoded" in scores.errors[0]
    assert "gone.mp4: no such file" in scores.errors[2]
    assert scores.values[[0, 2]].isnan().all()
    assert torch.equal(scores.values[1], small_scorer.score(good, "a square").values[0])
    assert scores.to_dicts()[0]["Overall"] is None
    assert not scores.ok
    assert "bad.mp4" in repr(scores)
    assert sum(seen) == 3


def test_a_prompt_that_the_text_encoder_cannot_read_fails_alone(small_scorer, clips):
    """Its score would be that of every other such prompt."""
    scores = small_scorer.score(clips[:3], ["a cat", "แมวสีแดง", "a dog"], layout="TCHW", batch_size=3)
    assert [bool(error) for error in scores.errors] == [False, True, False]
    assert "knows no word of the prompt 'แมวสีแดง'" in scores.errors[1]
    assert scores.values[1].isnan().all()


@pytest.mark.parametrize("layout", [None, "TCHW"])
def test_nothing_to_score(small_scorer, layout):
    scores = small_scorer.score([], [], layout=layout)
    assert len(scores) == 0
    assert scores.values.shape == (0, 5)
    assert scores.to_dicts() == []


@pytest.mark.parametrize(
    ("videos", "prompts", "kwargs", "error", "words"),
    [
        ("clips", PROMPTS[:4], {"layout": "TCHW"}, ValueError, "expected 5 prompts, one a clip, got 4"),
        ("clips", [*PROMPTS[:4], ""], {"layout": "TCHW"}, ValueError, "expected a text for prompt 4, got ''"),
        ("clips", [*PROMPTS[:4], None], {"layout": "TCHW"}, ValueError, "prompt 4, got None"),
        ("clips", PROMPTS, {}, ValueError, "need layout="),
        ("clips", PROMPTS, {"layout": "TCHW", "batch_size": 0}, ValueError, "batch_size of at least 1, got 0"),
        ("clips", PROMPTS, {"layout": "TCHW", "batch_size": 2.5}, TypeError, "float"),
        ("a.mp4", "a", {"layout": "TCHW"}, ValueError, "files have their own layout"),
        (["a.mp4", 3], "a", {}, TypeError, r"got a int as videos\[1\]"),
        (3, "a", {"layout": "TCHW"}, TypeError, "got int"),
        ({"a.mp4": "a cat"}, "a", {}, TypeError, "expected paths, an array, .* got dict"),
        ({"a.mp4", "b.mp4"}, "a", {}, TypeError, "expected paths, an array, .* got set"),
        (b"a.mp4", "a", {}, TypeError, "expected paths, an array, .* got bytes"),
        ([None], "a", {}, TypeError, r"an array or a tensor for videos\[0\], got NoneType"),
        ((name for name in ("a.mp4", None)), "a", {}, TypeError, r"got a NoneType as videos\[1\]"),
        (["a.mp4"], {"a.mp4": "a cat"}, {}, ValueError, "a list of texts as prompts, got a dict"),
    ],
)
def test_what_does_not_fit_is_refused(small_scorer, clips, videos, prompts, kwargs, error, words):
    with pytest.raises(error, match=words):
        small_scorer.score(clips if videos == "clips" else videos, prompts, **kwargs)


def pandas_column(paths):
    return pytest.importorskip("pandas").DataFrame({"video": paths}).video


@pytest.mark.parametrize("kind", [tuple, iter, np.array, lambda paths: np.array(paths, object), pandas_column])
def test_paths_come_in_whatever_holds_them_in_an_order(small_scorer, tmp_path, kind):
    paths = [str(tmp_path / name) for name in ("b.mp4", "a.mp4")]
    scores = small_scorer.score(kind(paths), kind(["a cat", "a dog"]))
    assert scores.sources == tuple(paths)
    assert scores.errors == tuple(f"{path}: no such file" for path in paths)


def test_clips_may_come_one_by_one(small_scorer, clips):
    found = small_scorer.score((clip for clip in clips[:2]), PROMPTS[:2], layout="TCHW").values
    assert torch.equal(found, small_scorer.score(clips[:2], PROMPTS[:2], layout="TCHW").values)


def test_a_tilde_is_the_home_folder_unless_a_file_is_called_so(
    small_scorer, write_video, moving_frames, tmp_path, monkeypatch
):
    at_home = write_video(moving_frames, "a.mp4")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert small_scorer.score("~/a.mp4", "a cat").sources == (str(at_home),)
    assert small_scorer.explain("~/a.mp4", "a cat", windows=1).source == str(at_home)
    assert small_scorer.decode("~/a.mp4").shape[1] == 3
    (tmp_path / "here" / "~").mkdir(parents=True)
    at_home.rename(tmp_path / "here" / "~" / "a.mp4")
    monkeypatch.chdir(tmp_path / "here")
    assert small_scorer.score("~/a.mp4", "a cat").errors == (None,)


def test_a_gpu_computes_in_bfloat16_by_default_and_a_cpu_in_float32():
    assert placement("cuda", None) == (torch.device("cuda"), torch.bfloat16)
    assert placement("cpu", None) == (torch.device("cpu"), torch.float32)


def test_a_model_with_parts_that_were_never_trained_makes_no_scorer(small_model, monkeypatch):
    monkeypatch.setattr(DOVERModel, "untrained", ("fusion", "mos_predictor"))
    with pytest.raises(WeightsError, match="no weights for fusion, mos_predictor: this model cannot score yet"):
        VideoScorer(small_model, device="cpu")


def test_a_model_straight_from_training_is_put_into_eval_mode(small_model, small_scorer, clips):
    scorer = VideoScorer(copy.deepcopy(small_model).train(), device="cpu")
    found, want = (each.score(clips[:1], PROMPTS[:1], layout="TCHW") for each in (scorer, small_scorer))
    assert torch.equal(found.values, want.values)


def test_frames_that_ask_for_gradients_leave_no_graph_behind(small_scorer, clips):
    asking = (clips[0] / 255).requires_grad_()
    assert not small_scorer.score([asking], PROMPTS[:1], layout="TCHW").values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_a_dtype_that_it_does_not_compute_in_is_refused(small_model, dtype):
    with pytest.raises(ValueError, match=f"float32, bfloat16 or float16, got {dtype}"):
        VideoScorer(small_model, device="cpu", dtype=dtype)


def test_the_fingerprint_holds_what_decides_a_score(small_model, small_scorer):
    again = VideoScorer(small_model, device="cpu").fingerprint
    assert again == small_scorer.fingerprint
    half = VideoScorer(small_model, device="cpu", dtype=torch.bfloat16).fingerprint
    assert half.digest != again.digest
    assert (again.text_encoder, again.decoder) == (small_model.text_encoder.sha256, av.__version__)
    assert (again.num_frames, again.frame_size) == (small_model.config.num_frames, small_model.config.frame_size)
    shorter = copy.deepcopy(small_model)
    shorter.text_encoder.max_length = 5
    assert VideoScorer(shorter, device="cpu").fingerprint.configuration != again.configuration


def test_every_layer_tells_which_kernel_it_takes(small_model, small_scorer, monkeypatch):
    assert [explanation.path for explanation in small_scorer.kernels] == ["reference"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("DOVER_KERNELS", "triton")
    model = copy.deepcopy(small_model)
    *_, last = (module for module in model.modules() if isinstance(module, ConvNeXtBlock3D))
    last.dwconv = torch.nn.Conv3d(12, 12, (3, 7, 7), groups=12)
    scorer = VideoScorer(model, device="cpu")
    told = {explanation.path: layers for explanation, layers in scorer.kernels.items()}
    assert told["refused"] == ["12 channels, 3x7x7"]
    assert "12 channels, 3x7x7" not in told["triton"]
    assert scorer.fingerprint.kernel == "refused, triton"


def test_weights_decide_the_fingerprint(small_config):
    from dover_eval import DOVERModel

    model = DOVERModel(None, config=small_config)
    before = VideoScorer(model, device="cpu").fingerprint.digest
    with torch.no_grad():
        model.mos_predictor.quality[-1].bias.add_(1e-6)
    assert VideoScorer(model, device="cpu").fingerprint.digest != before


def test_a_checkpoint_folder_scores_as_the_model_did(small_scorer, clips, tmp_path):
    small_scorer.model.save_pretrained(tmp_path)
    loaded = VideoScorer.from_pretrained(tmp_path, device="cpu")
    assert loaded.fingerprint == small_scorer.fingerprint
    assert torch.equal(
        loaded.score(clips, PROMPTS, layout="TCHW").values, small_scorer.score(clips, PROMPTS, layout="TCHW").values
    )


def test_weights_stored_in_half_are_computed_in_float(small_scorer, clips, tmp_path):
    import safetensors.torch

    small_scorer.model.save_pretrained(tmp_path)
    state = safetensors.torch.load_file(tmp_path / "model.safetensors")
    safetensors.torch.save_file({k: v.half() for k, v in state.items()}, tmp_path / "model.safetensors")
    loaded = VideoScorer.from_pretrained(tmp_path, device="cpu")
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert loaded.fingerprint.dtype == "float32"
    found = loaded.score(clips, PROMPTS, layout="TCHW").values
    torch.testing.assert_close(found, small_scorer.score(clips, PROMPTS, layout="TCHW").values, atol=0.05, rtol=0)


def test_results_validate_themselves(small_scorer, clips):
    scores = small_scorer.score(clips, PROMPTS, layout="TCHW")
    with pytest.raises(ValueError, match=r"expected values \(5, 5\) float32, got \(5, 4\)"):
        dataclasses.replace(scores, values=scores.values[:, :4])
    with pytest.raises(ValueError, match="expected 5 prompts, got 2"):
        dataclasses.replace(scores, prompts=("a", "b"))
    assert isinstance(scores, VideoScores)


def test_example_clips_score_the_same_twice(example_clip: Path, small_scorer):
    first, second = (small_scorer.score(example_clip, "a person", batch_size=1).values for _ in range(2))
    assert torch.equal(first, second)
    assert first.isfinite().all()


def test_the_fingerprint_follows_where_the_model_is_and_what_is_written_to_it(small_model: DOVERModel) -> None:
    scorer = VideoScorer(copy.deepcopy(small_model), device="cpu")
    before = scorer.fingerprint
    assert scorer.to("cpu") is scorer
    assert scorer.fingerprint == before
    assert scorer.device == torch.device("cpu")
    scorer.model.load_state_dict({k: v + v.is_floating_point() for k, v in small_model.state_dict().items()})
    assert scorer.fingerprint.weights != before.weights
    scorer.model.load_state_dict(small_model.state_dict())
    assert scorer.fingerprint == before
    scorer.model.dover_model.statistics.center.add_(1)
    assert scorer.fingerprint != before
    scorer.model.load_state_dict(small_model.state_dict())
    with torch.no_grad():
        weight = next(scorer.model.mos_predictor.parameters())
        weight.data.mul_(1.01)  # as moving averages copy theirs
        moved = scorer.fingerprint
        assert moved != before
        weight.neg_()
        assert scorer.fingerprint not in (moved, before)


def test_a_weight_whose_sign_is_turned_is_another_weight(small_model: DOVERModel) -> None:
    scorer = VideoScorer(copy.deepcopy(small_model), device="cpu")
    before = scorer.fingerprint
    next(scorer.model.parameters()).data.neg_()  # which counts as no new version
    assert scorer.fingerprint != before


def test_a_weight_that_is_replaced_again_and_again_is_never_taken_for_another(small_model: DOVERModel) -> None:
    scorer = VideoScorer(copy.deepcopy(small_model), device="cpu")
    layer = next(m for m in scorer.model.mos_predictor.modules() if isinstance(m, torch.nn.LayerNorm))
    found = set()
    for i in range(16):
        layer.weight = torch.nn.Parameter(torch.eye(len(layer.weight))[i % 8], requires_grad=False)  # of one norm
        found.add(scorer.fingerprint)
    assert len(found) == 8


@pytest.mark.parametrize("change", [{"mean": (0.5, 0.5, 0.5)}, {"token_grid": (4, 7, 7)}, {"windows": 2}], ids=str)
def test_the_same_weights_in_another_configuration_are_another_fingerprint(small_model: DOVERModel, change) -> None:
    other = DOVERModel(None, config=small_model.config.replace(**change))
    other.load_state_dict(small_model.state_dict())
    first, second = (VideoScorer(model, device="cpu").fingerprint for model in (other, small_model))
    assert first.digest != second.digest
    assert first.weights == second.weights


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 48)])
def test_files_whose_frames_change_size_and_frames_like_threads_fail_alone(
    small_scorer, write_video, tmp_path, width, height
):
    path = tmp_path / "changing.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=8, width=64, height=48, pix_fmt="yuvj420p")
        small = av.CodecContext.create("mjpeg", "w")
        small.width, small.height, small.pix_fmt, small.time_base = width, height, "yuvj420p", Fraction(1, 8)
        for t in range(8):
            size = (48, 64) if t < 4 else (height, width)
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 30 * t, np.uint8)).reformat(format="yuvj420p")
            frame.pts = t
            for packet in stream.encode(frame) if t < 4 else small.encode(frame):
                packet.stream, packet.pts, packet.dts = stream, t, t
                container.mux(packet)
    good = write_video(np.zeros((4, 32, 48, 3), np.uint8))
    thread = write_video(np.zeros((4, 2, 400, 3), np.uint8), "thread.mp4")
    scores = small_scorer.score([path, good, thread], "a cat")
    assert scores.values.isnan().any(dim=1).tolist() == [True, False, True]
    assert f"frames of 64x48 and {width}x{height}, expected one size" in scores.errors[0]
    assert "at most 64 times the other, got frames of 400x2" in scores.errors[2]
    with pytest.raises(ValueError, match=r"videos\[0\]: expected one side at most 64 times"):
        small_scorer.score(torch.zeros(1, 1, 3, 1, 65), "a cat", layout="BTCHW")


def test_the_default_dtype_of_the_process_has_no_say(small_model, small_scorer, clips, tmp_path):
    small_model.save_pretrained(tmp_path)
    expected = small_scorer.score(clips, PROMPTS, layout="TCHW")
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(small_scorer.score(clips, PROMPTS, layout="TCHW").values, expected.values)
        loaded = VideoScorer.from_pretrained(tmp_path, device="cpu")
        assert torch.equal(loaded.score(clips, PROMPTS, layout="TCHW").values, expected.values)
        assert loaded.fingerprint == small_scorer.fingerprint
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    with pytest.raises(ValueError, match=r"expected weights in float32.*bfloat16"):
        VideoScorer(copy.deepcopy(small_model).bfloat16(), device="cpu")


def test_threads_load_where_the_default_dtype_is_another(small_model, tmp_path):
    small_model.save_pretrained(tmp_path)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with ThreadPoolExecutor(4) as pool:
            scorers = list(pool.map(lambda _: VideoScorer.from_pretrained(tmp_path, device="cpu"), range(8)))
        assert torch.get_default_dtype() == torch.bfloat16
    finally:
        torch.set_default_dtype(torch.float32)
    assert len({str(scorer.fingerprint) for scorer in scorers}) == 1


def test_the_default_device_of_the_process_has_no_say(small_scorer, clips):
    expected = small_scorer.score(clips, PROMPTS, layout="TCHW")
    with torch.device("meta"):
        assert torch.equal(small_scorer.score(clips, PROMPTS, layout="TCHW").values, expected.values)


def test_a_head_that_gives_no_number_is_an_error_as_well(small_model, clips):
    model = copy.deepcopy(small_model)
    model.requires_grad_(False)
    model.dover_model.technical_head.fc_last.bias.fill_(torch.inf)
    scores = VideoScorer(model, device="cpu").score(clips[:1], PROMPTS[:1], layout="TCHW")
    assert scores.to_dicts()[0]["technical_score"] is None
    assert not scores.ok


def test_a_score_that_is_no_number_is_an_error(small_model, clips):
    model = copy.deepcopy(small_model)
    model.mos_predictor.requires_grad_(False)
    next(model.mos_predictor.alignment.parameters()).fill_(torch.nan)
    scores = VideoScorer(model, device="cpu").score(clips, PROMPTS, layout="TCHW")
    assert scores.values.isnan().all()
    assert set(scores.errors) == {"the model gave a score that is not finite, in float32"}
    assert scores.to_dicts()[0]["Overall"] is None


def test_a_model_that_trains_again_is_not_scored_with(small_model, clips):
    model = copy.deepcopy(small_model)
    scorer = VideoScorer(model, device="cpu")
    before = scorer.score(clips, PROMPTS, layout="TCHW").values
    model.train()
    with pytest.raises(RuntimeError, match=r"training mode, in which clips change it: call model\.eval\(\)"):
        scorer.score(clips, PROMPTS, layout="TCHW")
    model.eval()
    assert torch.equal(scorer.score(clips, PROMPTS, layout="TCHW").values, before)
