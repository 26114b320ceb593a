"""What several tests share: small models with seeded random weights, and real video files."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dover_eval import DOVERConfig, DOVERModel, VideoScorer
from dover_eval.config import IMAGENET_MEAN, IMAGENET_STD, MINILM

REPOSITORY = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"

# Small enough for a test, and with every feature of the large ones.
SMALL = DOVERConfig(
    dims=(8, 16, 24, 32),
    depths=(2, 1, 2, 1),
    signals=("rgb", "highpass", "difference", "global_difference"),
    layer_scale_init=0.5,
    statistics=True,
    head_hidden=8,
    token_grid=(2, 2, 2),
    fusion_dim=32,
    mos_dim=16,
    text_encoder_name=MINILM,
    text_dim=384,
    num_frames=4,
    frame_size=(32, 48),
)


def normalised(frames: np.ndarray, runs: int = 2) -> torch.Tensor:
    """Frames (T,H,W,3) in 0-255 as `runs` runs of consecutive ones, (1,R,3,T/R,H,W)."""
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    x = (torch.from_numpy(frames).permute(3, 0, 1, 2).float() / 255 - mean) / std
    return x.unflatten(1, (runs, -1)).movedim(1, 0)[None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Makes a folder that cannot be listed: also for root, whom the tests may run as."""
    listed, locked = os.scandir, set()

    def scandir(path):
        if str(path) in locked:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    def make(folder: Path) -> None:
        folder.mkdir(parents=True)
        locked.add(str(folder))

    monkeypatch.setattr(os, "scandir", scandir)
    return make


@pytest.fixture(scope="session")
def small_config() -> DOVERConfig:
    return SMALL


@pytest.fixture(scope="session")
def small_model() -> DOVERModel:
    """Random weights, wide enough apart that inputs and prompts make a difference. Do not train it."""
    torch.manual_seed(1)
    model = DOVERModel(None, config=SMALL).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="session")
def small_scorer(small_model: DOVERModel) -> VideoScorer:
    return VideoScorer(small_model, device="cpu")


@pytest.fixture
def frames(small_config: DOVERConfig) -> torch.Tensor:
    """Two normalised clips as the small model reads them."""
    return torch.randn(2, 3, small_config.num_frames, *small_config.frame_size)


@pytest.fixture(scope="session")
def checkpoint(small_model: DOVERModel, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the small model."""
    folder = tmp_path_factory.mktemp("checkpoint")
    small_model.save_pretrained(folder)
    return str(folder)


WriteVideo = Callable[..., Path]


@pytest.fixture
def write_video(tmp_path: Path) -> WriteVideo:
    """Writes frames (T,H,W,3) uint8 into a real file; `times` in milliseconds makes the frame rate vary."""

    def write(
        frames: np.ndarray,
        name: str = "clip.mp4",
        *,
        rate: int = 8,
        times: list[int] | None = None,
        codec: str = "libx264",
        options: dict[str, str] | None = None,
        metadata: dict[str, str] | None = None,
    ) -> Path:
        path = tmp_path / name
        options = options or ({"crf": "4", "preset": "ultrafast"} if codec == "libx264" else {})
        with av.open(str(path), "w") as container:
            container.metadata.update(metadata or {})
            stream = container.add_stream(codec, rate=1000 if times else rate, options=options)
            stream.height, stream.width = frames.shape[1:3]
            stream.time_base = Fraction(1, 1000 if times else rate)
            stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
            for i, pixels in enumerate(frames):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                if times:
                    frame.pts = times[i]
                    frame.time_base = Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return path

    return write


@pytest.fixture
def moving_frames() -> np.ndarray:
    """Twelve frames of a bright square that moves over noise."""
    rng = np.random.default_rng(0)
    background = rng.integers(0, 120, (48, 64, 3), dtype=np.uint8)
    frames = np.repeat(background[None], 12, axis=0)
    for t in range(12):
        frames[t, 16:32, 4 * t : 4 * t + 12] = 250
    return frames


@pytest.fixture(params=["heart_clean.mp4", "star_noisy.mp4"])
def example_clip(request: pytest.FixtureRequest) -> Path:
    """Videos that lie in the project as files."""
    return REPOSITORY / "examples" / "clips" / request.param
