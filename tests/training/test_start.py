"""Where weights come from; inflated ones against the two-dimensional network that they were."""

import functools
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from dover_eval import DOVERConfig, DOVERModel, VideoScorer, WeightsError
from dover_eval.models.convnext3d import ConvNeXt3D
from dover_eval.scores import weights_digest
from dover_eval.training.settings import SettingsError, TrainSettings
from dover_eval.training.start import inflate_convnext, start_model
from tests.training.small import MODEL

# Every key and shape of `convnext_tiny`, as the two packages have them.
LAYOUTS = json.loads((Path(__file__).parent / "convnext_tiny_layouts.json").read_text())
DEPTHS = (3, 3, 9, 3)


@functools.cache
def weights(layout):
    """Random weights under the published keys."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in LAYOUTS[layout].items():
        value = torch.randn(shape, generator=generator) / max(1, torch.tensor(shape[1:]).prod().item()) ** 0.5
        state[name] = value + (1 if "norm" in name and name.endswith("weight") else 0)
    return state


def norm(x, weight, bias):
    return F.layer_norm(x.permute(0, 2, 3, 1), (len(weight),), weight, bias, 1e-6).permute(0, 3, 1, 2)


def block(x, conv, layer_norm, first, second, scale):
    y = F.conv2d(x, *conv, padding=3, groups=x.shape[1])
    y = F.linear(F.gelu(F.linear(norm(y, *layer_norm).permute(0, 2, 3, 1), *first)), *second)
    return x + (y * scale.flatten()).permute(0, 3, 1, 2)


def timm_features(state, x):
    """What timm's ConvNeXt computes before its head, written from its keys."""
    both = lambda name: (state[f"{name}.weight"], state[f"{name}.bias"])
    x = norm(F.conv2d(x, *both("stem.0"), stride=4), *both("stem.1"))
    for i, depth in enumerate(DEPTHS):
        if i:
            x = F.conv2d(norm(x, *both(f"stages.{i}.downsample.0")), *both(f"stages.{i}.downsample.1"), stride=2)
        for j in range(depth):
            at = f"stages.{i}.blocks.{j}"
            parts = [both(f"{at}.{name}") for name in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")]
            x = block(x, *parts, state[f"{at}.gamma"])
    return x


def torchvision_features(state, x):
    """The same from torchvision's keys."""
    both = lambda name: (state[f"{name}.weight"], state[f"{name}.bias"])
    x = norm(F.conv2d(x, *both("features.0.0"), stride=4), *both("features.0.1"))
    for i, depth in enumerate(DEPTHS):
        if i:
            x = F.conv2d(norm(x, *both(f"features.{2 * i}.0")), *both(f"features.{2 * i}.1"), stride=2)
        for j in range(depth):
            at = f"features.{2 * i + 1}.{j}"
            parts = [both(f"{at}.block.{k}") for k in (0, 2, 3, 5)]
            x = block(x, *parts, state[f"{at}.layer_scale"])
    return x


REFERENCES = {"timm": timm_features, "torchvision": torchvision_features}


@pytest.mark.parametrize(("layout", "stem"), [*zip(LAYOUTS, (1, 2), strict=True)])
@torch.no_grad()
def test_a_still_clip_gives_the_features_of_its_frame(layout, stem):
    state = weights(layout)
    backbone = ConvNeXt3D(DOVERConfig(stem_kernel=(stem, 4, 4)))
    name, report = inflate_convnext(state, backbone, "centre")
    assert layout.startswith(name)
    frame = torch.randn(1, 3, 32, 32)
    want = REFERENCES[name](state, frame)
    *_, features, _ = backbone.forward_stages(frame[:, :, None].expand(-1, -1, 4, -1, -1))
    torch.testing.assert_close(features, want[:, :, None].expand_as(features), rtol=1e-4, atol=1e-4)
    assert report.missing == ()
    assert len(report.unused) == 2  # the classifier
    assert torch.equal(backbone.norm.weight, state["head.norm.weight" if name == "timm" else "classifier.0.weight"])


def test_mean_inflation_spreads_a_kernel_over_time():
    state = weights("timm 1.0.31")
    backbone = ConvNeXt3D(DOVERConfig())
    inflate_convnext(state, backbone, "mean")
    kernel = backbone.stages[0][1].dwconv.weight
    assert kernel.shape[2] == 3
    torch.testing.assert_close(kernel[:, :, 0], state["stages.0.blocks.1.conv_dw.weight"] / 3)
    torch.testing.assert_close(kernel.sum(dim=2), state["stages.0.blocks.1.conv_dw.weight"])


def test_further_input_planes_begin_without_influence():
    backbone = ConvNeXt3D(DOVERConfig(signals=("rgb", "highpass", "difference")))
    inflate_convnext(weights("timm 1.0.31"), backbone, "centre")
    stem = backbone.downsample_layers[0][0].weight
    assert stem.shape[1] == 5
    assert (stem[:, 3:] == 0).all()
    assert (stem[:, :3] != 0).all()


def test_what_does_not_fit_is_refused_with_its_keys():
    backbone = ConvNeXt3D(DOVERConfig())
    state = weights("timm 1.0.31")
    with pytest.raises(WeightsError, match=r"missing stages\.2\.0\.dwconv\.weight \(1\)"):
        inflate_convnext({k: v for k, v in state.items() if k != "stages.2.blocks.0.conv_dw.weight"}, backbone)
    with pytest.raises(WeightsError, match=r"layer4\.0\.conv has no place here"):
        inflate_convnext(state | {"layer4.0.conv": torch.zeros(1)}, backbone)
    with pytest.raises(WeightsError, match=r"stem\.0\.weight \(96, 3, 4, 4\) for .* \(8, 3, 1, 4, 4\)"):
        inflate_convnext(state, ConvNeXt3D(DOVERConfig(dims=(8, 16, 24, 32))))
    with pytest.raises(WeightsError, match=r"no ConvNeXt of timm .* or torchvision .*: it has conv1"):
        inflate_convnext({"conv1": torch.zeros(1)}, backbone)


def settings(tmp_path, model=None, licence="apache-2.0", **start):
    found = {
        "output": "model",
        "data": {"train": [{"table": "a.csv", "videos": "clips"}]},
        "training": {"steps": 1},
        "card": {"licence": licence, "licence_name": "s-lab-1.0"},
        "model": model or {},
        "start": start,
    }
    return TrainSettings.parse(found, folder=tmp_path)


def test_an_imagenet_file_starts_a_model(tmp_path):
    state = weights("torchvision 0.29.2")
    torch.save(state, tmp_path / "convnext_tiny.pth")
    small = {"num_frames": 2, "text_encoder_name": "sentence-transformers/all-MiniLM-L6-v2"}
    model, told = start_model(settings(tmp_path, small, kind="imagenet", weights="convnext_tiny.pth"))
    assert torch.equal(model.dover_model.backbone.downsample_layers[0][0].bias, state["features.0.0.bias"])
    assert model.config.num_frames == 2
    assert "torchvision layout, inflated by centre" in told


def test_a_file_that_is_nowhere_is_said_so(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match=r"no folder timm/convnext_tiny, and no model\.safetensors of"):
        start_model(settings(tmp_path, MODEL, kind="imagenet", weights="timm/convnext_tiny"))


def test_a_checkpoint_starts_a_model_and_its_configuration_may_change(tmp_path, small_model):
    small_model.save_pretrained(tmp_path / "before")
    model, _ = start_model(settings(tmp_path, {"num_frames": 8}, kind="checkpoint", weights="before"))
    assert model.config == small_model.config.replace(num_frames=8, text_encoder_sha256=small_model.text_encoder.sha256)
    for ours, theirs in zip(model.parameters(), small_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(WeightsError, match=r"before does not fit with model: \{'fusion_dim': 64\}"):
        start_model(settings(tmp_path, {"fusion_dim": 64}, kind="checkpoint", weights="before"))
    deeper = {"depths": [2, 2, 2, 1]}
    _, told = start_model(settings(tmp_path, deeper, kind="checkpoint", weights="before"))
    assert "fresh for {'depths': [2, 2, 2, 1]} dover_model.backbone.stages.1.1.dwconv.bias, " in told
    assert told.endswith("(9 tensors in all)")


def test_a_text_encoder_that_was_trained_before_learns_on_request_alone(tmp_path, small_config):
    torch.manual_seed(1)
    before = DOVERModel(None, config=small_config, train_text_encoder=True)
    before.save_pretrained(tmp_path / "before")
    given = settings(tmp_path, kind="checkpoint", weights="before")
    model, _ = start_model(given)
    assert not any(parameter.requires_grad for parameter in model.text_encoder.parameters())
    assert not any(module.training for module in model.train().text_encoder.modules())  # without its dropout
    assert any(key.startswith("text_encoder.") for key in model.state_dict())  # and part of what comes out
    given = replace(given, training=replace(given.training, train_text_encoder=True))
    model, _ = start_model(given)
    assert all(parameter.requires_grad for parameter in model.text_encoder.parameters())
    assert all(module.training for module in model.train().text_encoder.modules())


def test_the_embedded_default_starts_a_model(tmp_path):
    model, told = start_model(settings(tmp_path, kind="checkpoint", weights="default"))
    assert weights_digest(model.state_dict()) == weights_digest(VideoScorer.from_pretrained().model.state_dict())
    record = json.loads((resources.files("dover_eval") / "assets" / "training.json").read_text())
    assert told == f"the checkpoint default, which began with {record['start']}"


def test_the_published_aesthetic_branch_starts_a_model(tmp_path):
    """The published keys at a small size, as the golden file has them."""
    model = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "stem_kernel": [2, 4, 4], "head_hidden": 8}
    model["text_encoder_name"] = "sentence-transformers/all-MiniLM-L6-v2"
    torch.manual_seed(5)
    published = DOVERModel(None, config=DOVERConfig(**model)).dover_model
    names = {"backbone.": "aesthetic_backbone.", "aesthetic_head.": "aesthetic_head."}
    state = {
        theirs + key[len(ours) :]: value
        for ours, theirs in names.items()
        for key, value in published.state_dict().items()
        if key.startswith(ours)
    }
    save_file(state, tmp_path / "dover.safetensors")
    found, told = start_model(settings(tmp_path, model, "other", kind="dover", weights="dover.safetensors"))
    assert torch.equal(found.dover_model.backbone.norm.weight, published.backbone.norm.weight)
    assert torch.equal(found.dover_model.aesthetic_head.fc_hid.weight, published.aesthetic_head.fc_hid.weight)
    assert found.untrained == ()  # what it leaves open is fresh, because this is for training
    assert "DOVER++" in told

    # What began with it keeps its licence and says so, in the second generation and the third.
    for before in ("first", "second"):
        found.save_pretrained(tmp_path / before)
        (tmp_path / before / "training.json").write_text(json.dumps({"start": told}))
        with pytest.raises(SettingsError, match="stays under their S-Lab License"):
            start_model(settings(tmp_path, kind="checkpoint", weights=before))
        found, told = start_model(settings(tmp_path, None, "other", kind="checkpoint", weights=before))
        assert told.startswith(f"the checkpoint {before}, which began with ")
    assert told.endswith("the published DOVER++ (dover.safetensors), the rest fresh")
