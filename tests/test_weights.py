"""Published checkpoints: agreement with the published implementation, adaptation, and refusals."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dover_eval import DOVERConfig, DOVERModel, DOVERModelSimple, VideoScorer, WeightsError, load_dover_checkpoint
from dover_eval.config import MINILM
from dover_eval.weights import adapt_dover_checkpoint, load_checkpoint_file, resolve_weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden() -> dict:
    """A small checkpoint in the published naming, an input, and what the published implementation makes of it."""
    with safe_open(GOLDEN / "dover_aesthetic_small.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        settings = {k: tuple(map(int, v.split(","))) for k, v in file.metadata().items()}
    config = DOVERConfig(
        dims=settings["dims"],
        depths=settings["depths"],
        stem_kernel=settings["stem"],
        temporal_kernels=settings["temporal_kernels"],
        head_hidden=settings["head_hidden"][0],
        text_encoder_name=MINILM,
    )
    state = {k.removeprefix("checkpoint."): v for k, v in tensors.items() if k.startswith("checkpoint.")}
    return {"config": config, "state": state, **{k: v for k, v in tensors.items() if not k.startswith("checkpoint.")}}


def saved(path: Path, state: dict[str, Tensor]) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize("form", ["bare", "state_dict", "safetensors"])
def test_agrees_with_the_published_implementation(golden, tmp_path, form):
    if form == "safetensors":
        path = tmp_path / "w.safetensors"
        save_file(golden["state"], path)
    else:
        path = saved(tmp_path / "w.pth", golden["state"] if form == "bare" else {"state_dict": golden["state"]})
    model, report = load_dover_checkpoint(path, golden["config"])
    with torch.no_grad():
        output = model(golden["input.video"], maps=True)
    for name, expected in {
        "backbone_features": golden["output.features"],
        "aesthetic_map": golden["output.local_scores"],
        "aesthetic_score": golden["output.score"][:, None],
    }.items():
        torch.testing.assert_close(output[name], expected, atol=1e-4, rtol=1e-4)
    assert not report.adapted
    assert not report.unused


def test_what_the_checkpoint_leaves_open_is_nan_and_named(golden, tmp_path):
    path = saved(tmp_path / "w.pth", golden["state"])
    model, report = load_dover_checkpoint(path, golden["config"])
    with torch.no_grad():
        output = model(golden["input.video"])
    assert output["technical_score"].isnan().all()
    assert output["features"].isnan().all()
    assert {name.split(".")[0] for name in report.missing} == {"technical_head", "projection"}
    total = sum(p.numel() for p in model.parameters())
    assert report.coverage == pytest.approx(sum(t.numel() for t in golden["state"].values()) / total)

    model, _ = load_dover_checkpoint(path, golden["config"], fresh=("technical_head", "projection"))
    assert all(value.isfinite().all() for value in model(golden["input.video"]).values())
    with pytest.raises(ValueError, match="fresh names"):
        load_dover_checkpoint(path, golden["config"], fresh=("backbone",))


def test_the_whole_model_refuses_to_score_with_parts_never_trained(golden, tmp_path, caplog):
    path = saved(tmp_path / "w.pth", golden["state"])
    model = DOVERModel(path, config=golden["config"]).eval()
    assert model.untrained == ("fusion", "mos_predictor", "projection", "technical_head")
    assert "no weights for fusion" in caplog.text
    with pytest.raises(WeightsError, match="no weights for fusion, mos_predictor"):
        model(golden["input.video"], ["a", "b"])
    with pytest.raises(WeightsError, match="cannot score"):
        VideoScorer(model, device="cpu")
    features = model.extract_features(golden["input.video"], ["a", "b"])
    torch.testing.assert_close(features["aesthetic_score"][:, 0], golden["output.score"], atol=1e-4, rtol=1e-4)
    assert features["mos"].isnan().all()

    ready = DOVERModel(path, config=golden["config"], fresh=model.untrained).eval()
    assert ready(golden["input.video"], ["a", "b"]).isfinite().all()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda value: value * torch.nan, "holds NaN or infinity"),
        (lambda value: value / 0, "holds NaN or infinity"),
        (lambda value: value.to(torch.int8), r"is torch\.int8, expected a floating dtype"),
        (lambda value: value[1:], "expected"),
    ],
    ids=["nan", "infinity", "int8", "shape"],
)
def test_a_tensor_that_does_not_fit_is_refused_and_the_model_stays_as_it_was(golden, spoil, words):
    model = DOVERModelSimple(golden["config"])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    last = list(golden["state"])[-1]
    with pytest.raises(WeightsError, match=f"1 tensors do not fit.*{last}.*{words}"):
        adapt_dover_checkpoint(golden["state"] | {last: spoil(golden["state"][last])}, model)
    with pytest.raises(WeightsError, match=r"expected at least 100\.0%"):
        adapt_dover_checkpoint(golden["state"], model, min_coverage=1.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_backbone_deeper_than_the_configuration_is_not_cut(golden):
    config = DOVERConfig.resolve(golden["config"])
    model = DOVERModelSimple(config.replace(depths=(1,) * 4))
    with pytest.raises(WeightsError, match=r"do not fit this configuration: aesthetic_backbone\..* has no place"):
        adapt_dover_checkpoint(golden["state"], model)


def test_fresh_is_a_list_of_names(golden, tmp_path):
    path = saved(tmp_path / "w.pth", golden["state"])
    with pytest.raises(TypeError, match=r"such as \['projection'\]"):
        load_dover_checkpoint(path, golden["config"], fresh="projection")


def published_state(layout: dict) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(entry["shape"], generator=generator) * 0.02
        if entry["dtype"] == "float32"
        else torch.zeros(entry["shape"], dtype=getattr(torch, entry["dtype"]))
        for key, entry in layout.items()
    }


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    """A file in the published layout, full size, of random numbers."""
    layout = json.loads((GOLDEN / "dover_checkpoint_layout.json").read_text())
    assert len(layout) == 381
    state = published_state(layout)
    return saved(tmp_path_factory.mktemp("published") / "DOVER_plus_plus.pth", {"state_dict": state}), state


def test_the_published_layout_fits_exactly(published):
    path, state = published
    model, report = load_dover_checkpoint(path)
    assert not report.adapted
    assert {key.split(".")[0] for key in report.unused} == {"technical_backbone", "technical_head"}
    assert report.coverage > 0.95
    ours = model.state_dict()
    for key, value in state.items():
        if key.startswith("aesthetic_"):
            name = key.replace("aesthetic_backbone.", "backbone.")
            assert torch.equal(ours[name], value), key
    assert "technical_backbone.*" in str(report)


def test_the_specification_s_stem_is_the_published_one_summed(published):
    path, state = published
    model, report = load_dover_checkpoint(path, "tiny")
    weight = state["aesthetic_backbone.downsample_layers.0.0.weight"]
    torch.testing.assert_close(model.backbone.downsample_layers[0][0].weight, weight.sum(2, keepdim=True))
    assert "summed over time" in report.adapted["backbone.downsample_layers.0.0.weight"]
    # Exact for a still pair: one frame through the summed stem is two equal ones through the published.
    frame = torch.randn(1, 3, 1, 32, 32)
    published_stem = torch.nn.functional.conv3d(frame.expand(-1, -1, 2, -1, -1), weight, stride=(2, 4, 4))
    ours = torch.nn.functional.conv3d(frame, model.backbone.downsample_layers[0][0].weight, stride=(1, 4, 4))
    torch.testing.assert_close(ours, published_stem, atol=1e-5, rtol=1e-4)


def test_kernels_of_another_length_are_centred(golden, tmp_path):
    path = saved(tmp_path / "w.pth", golden["state"])
    model, report = load_dover_checkpoint(path, golden["config"].replace(temporal_kernels=(3, 1)))
    key = "stages.0.{}.dwconv.weight"
    wider, middle = model.backbone.stages[0][0].dwconv.weight, model.backbone.stages[0][1].dwconv.weight
    assert torch.equal(wider[:, :, 1:2], golden["state"]["aesthetic_backbone." + key.format(0)])
    assert wider[:, :, [0, 2]].abs().max() == 0
    assert torch.equal(middle, golden["state"]["aesthetic_backbone." + key.format(1)][:, :, 1:2])
    assert report.adapted["backbone." + key.format(0)] == "temporal size 1 to 3, centred"


def test_a_checkpoint_that_covers_too_little_is_refused(golden, tmp_path):
    state = {k: v for k, v in golden["state"].items() if "stages.2" not in k}
    path = saved(tmp_path / "w.pth", state)
    with pytest.raises(WeightsError, match=r"lacks \d+ tensors.*backbone"):
        load_dover_checkpoint(path, golden["config"])
    with pytest.raises(WeightsError, match=r"expected at least 99\.0%; missing: backbone"):
        load_dover_checkpoint(path, golden["config"], min_coverage=0.99)
    model, _ = load_dover_checkpoint(path, golden["config"], min_coverage=0.1)
    assert model(golden["input.video"])["aesthetic_score"].isnan().all()


def test_tensors_of_another_size_are_refused(golden, tmp_path):
    with pytest.raises(WeightsError, match=r"do not fit.*\(16, 3, 2, 4, 4\), expected \(96, 3, 2, 4, 4\)"):
        load_dover_checkpoint(saved(tmp_path / "w.pth", golden["state"]))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "a web page"),
        (pickle.dumps({"a": argparse.Namespace()}, protocol=2), r"argparse\.Namespace"),
    ],
    ids=["lfs", "page", "class"],
)
def test_what_came_in_place_of_a_checkpoint_is_said(tmp_path, content, words):
    path = tmp_path / "w.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"w\.pth is no checkpoint that can be read safely: .*{words}"):
        load_checkpoint_file(path)


class Payload:
    def __reduce__(self):
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize("content", ["code", "404 not found", "hello", "empty", "list", "nested"])
def test_what_is_no_state_dict_is_refused_and_not_run(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pth"
    if content == "code":
        path.write_bytes(pickle.dumps({"state_dict": Payload()}))
    elif content in ("404 not found", "hello"):
        path.write_text(content)
    elif content == "empty":
        path.write_bytes(b"")
    else:
        torch.save([torch.zeros(1)] if content == "list" else {"epoch": 3}, path)
    with pytest.raises(WeightsError, match=str(path)):
        load_checkpoint_file(path)
    assert not (tmp_path / "pwned").exists()
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"\xff" * 40)
    with pytest.raises(WeightsError, match="safetensors"):
        load_checkpoint_file(broken)


def test_offline_the_error_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no weights at .*nowhere\.pth.*teowu/DOVER.*pass its path"):
        DOVERModel(tmp_path / "nowhere.pth", config="nano")


@pytest.mark.parametrize("name", ["last.ckpt", "run", ""])
def test_what_cannot_be_a_published_checkpoint_is_not_replaced_by_one(tmp_path, name):
    (tmp_path / "run").mkdir()
    with pytest.raises(FileNotFoundError, match=r"expected the \.pth or \.safetensors file of a published checkpoint"):
        resolve_weights(tmp_path / name)


@pytest.fixture
def hub(published) -> Iterator[str]:
    """A server that answers as the hub does for one file."""
    body = published[0].read_bytes()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.answer()

        def do_GET(self):
            if self.answer():
                self.wfile.write(body)

        def answer(self) -> bool:
            found = self.path == "/teowu/DOVER/resolve/main/DOVER_plus_plus.pth"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", '"1234567890"')
                self.send_header("X-Repo-Commit", "a" * 40)
                self.send_header("Content-Length", str(len(body)))
            else:
                self.send_header("Content-Length", "0")
            self.end_headers()
            return found

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_absent_weights_are_fetched_from_the_hub_into_its_cache(hub, published, tmp_path):
    code = (
        "from dover_eval.weights import load_dover_checkpoint, resolve_weights\n"
        "model, report = load_dover_checkpoint('models/DOVER_plus_plus.pth')\n"
        "print(report.coverage > 0.95, resolve_weights('models/DOVER_plus_plus.pth'))"
    )
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True " + str(tmp_path))
    assert next(tmp_path.rglob("DOVER_plus_plus.pth")).stat().st_size == published[0].stat().st_size


def test_a_path_that_exists_is_taken_as_it_is(tmp_path):
    path = tmp_path / "some.bin"
    path.write_bytes(b"x")
    assert resolve_weights(path) == path


def test_nothing_is_random_by_accident():
    """`DOVERModel()` asks for the published weights; random ones take `None`, said aloud."""
    import inspect

    assert inspect.signature(DOVERModel).parameters["dover_weights_path"].default == "DOVER_plus_plus.pth"
    assert DOVERModelSimple("nano").config.text_encoder_sha256 is None
