"""Files of the server's machine: under the named root alone, and no way out of it."""

import os

import pytest


@pytest.fixture
def root(tmp_path, mp4):
    root = tmp_path / "root"
    (root / "run 1").mkdir(parents=True)
    (root / "run 1" / "clip.mp4").write_bytes(mp4.read_bytes())
    (tmp_path / "outside.mp4").write_bytes(mp4.read_bytes())
    (root / "link.mp4").symlink_to(tmp_path / "outside.mp4")
    (root / "inner.mp4").symlink_to(root / "run 1" / "clip.mp4")
    (root / "door").symlink_to(tmp_path)
    return root


def ask(server, path):
    item = {"history": [{"text": "a cat", "video_path": path}]}
    with server.http() as http:
        return http.post("/score", json={"requests": [item]}).json()


def test_a_file_under_the_root_is_scored(serve, reward, root, mp4):
    server = serve(video_root=root)
    expected = reward([mp4], "a cat").item()
    for path in ("run 1/clip.mp4", "./run 1//clip.mp4", str(root / "run 1" / "clip.mp4")):
        answer = ask(server, path)
        assert answer["results"][0]["dover"]["Overall"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "path",
    [
        "../outside.mp4",
        "run 1/../../outside.mp4",
        "run 1/../run 1/clip.mp4",
        "/etc/passwd",
        "{root}/../outside.mp4",
        "{root}",
        "link.mp4",
        "inner.mp4",
        "door/outside.mp4",
        "missing.mp4",
        "run 1",
        "run 1/clip.mp4/x",
        "",
        ".",
        "\x00",
        "a" * 5000,
        "~/clip.mp4",
        "file:///etc/passwd",
    ],
)
def test_every_other_path_is_refused_alike(serve, root, path):
    answer = ask(serve(video_root=root), path.replace("{root}", str(root)))
    assert answer["results"] == [{}]
    assert "under the server's video root" in answer["errors"][0]["dover"]


def test_without_a_root_there_are_no_paths(serve, mp4):
    assert "reads no files" in ask(serve(), str(mp4))["errors"][0]["dover"]


def test_a_pipe_does_not_hang_the_server(serve, root):
    os.mkfifo(root / "pipe")
    assert "no such file" in ask(serve(video_root=root), "pipe")["errors"][0]["dover"]
