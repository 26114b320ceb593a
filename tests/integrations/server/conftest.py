"""Servers on real sockets, on loopback, around a model small enough for every test."""

import contextlib
import socket
import threading
import time

import av
import httpx
import pytest
import torch
import uvicorn
from dover_integrations.rewards import DoverReward
from dover_integrations.server import DoverRewardClient, ServerSettings, create_app


@pytest.fixture(scope="session")
def model(small_model):
    return small_model


@pytest.fixture
def reward(model):
    return DoverReward(model, layout="BTCHW", value_range=(0, 255), device="cpu", nan_policy="nan")


@pytest.fixture(scope="session")
def videos():
    """(6,5,3,40,48) uint8, clips that differ in brightness and noise."""
    noise = torch.rand(6, 5, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    return (noise * torch.linspace(25, 255, 6).view(6, 1, 1, 1, 1)).byte()


@pytest.fixture(scope="session")
def prompts():
    return ["a red bicycle in the rain", "two dogs on a beach", "snow on a roof", "a boat", "a cat", "a tree"]


class RunningServer:
    """uvicorn in a thread; `stop` is what SIGTERM does."""

    def __init__(self, app, port=0):
        config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=20)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            assert self.thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.server.should_exit = True

    def join(self):
        self.thread.join(30)
        assert not self.thread.is_alive()

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def http(self, **settings):
        return httpx.Client(base_url=self.url, timeout=20, trust_env=False, **settings)


@pytest.fixture
def serve(reward):
    """Starts servers with the given settings; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def start(reward=reward, port=0, **settings):
            server = RunningServer(create_app(reward, ServerSettings(**settings)), port)
            stack.callback(server.join)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture
def client():
    """Clients that are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(server, **settings):
            settings = {"layout": "BTCHW", "value_range": (0, 255), "retries": 0, "timeout": 20} | settings
            client = DoverRewardClient(server if isinstance(server, str) else server.url, **settings)
            stack.callback(client.close)
            return client

        yield make


@pytest.fixture
def slow_model(reward, monkeypatch):
    """The scorer waits before its model until told to go on; `entered` says that it is there."""
    entered, go = threading.Event(), threading.Event()
    score_prepared = reward.scorer.score_prepared

    def slow(frames, prompts):
        entered.set()
        assert go.wait(20)
        return score_prepared(frames, prompts)

    monkeypatch.setattr(reward.scorer, "score_prepared", slow)
    yield entered, go
    go.set()


@pytest.fixture(scope="session")
def mp4(tmp_path_factory, videos):
    """A small video file, and the bytes in it."""
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 40, 48, "yuv420p"
        for frame in videos[3]:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.permute(1, 2, 0).numpy(), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def still_serves(client, videos, prompts):
    """A good request after the bad one is answered, and nothing is left waiting."""

    def check(server):
        assert client(server)(videos[:2], prompts[:2]).isfinite().all()
        with server.http() as http:
            assert http.get("/health").json()["waiting"] == 0

    return check
