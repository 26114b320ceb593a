"""Stores and web servers, real ones on this machine: what they hold scores as files do, and their troubles are told."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from pathlib import Path

import fsspec
import pytest

from dover_eval.files import Clip, FileError, identity, local_file
from dover_eval.inputs import list_clips
from tests.scale.conftest import read_lines, write_shard, write_table


@pytest.fixture
def memory(clips):
    """The clips in fsspec's memory:// file system."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    for path in sorted(clips.iterdir()):
        store.pipe(f"/set/{path.name}", path.read_bytes())
    yield store
    store.store.clear()


def test_folders_patterns_manifests_and_shards_of_a_remote_store(dover, memory, clips, tmp_path):
    memory.pipe("/set/m.csv", b"video,Prompt\na.mp4,a square\nmemory://set/b.mp4,a square\n")
    shard = write_shard(tmp_path / "s.tar", {"a.mp4": (clips / "a.mp4").read_bytes(), "a.txt": b"a square"})
    memory.pipe("/set/s.tar", shard.read_bytes())
    output = tmp_path / "r.jsonl"
    result = dover(
        "memory://set/*.mp4", "memory://set/m.csv", "memory://set/s.tar", "--prompt", "a square", "-o", output
    )
    assert result.exit_code == 0, result.output
    rows = read_lines(output)
    assert [row["video_name"] for row in rows] == [
        *(f"memory:///set/{name}.mp4" for name in "abc"), "memory://set/a.mp4", "memory://set/b.mp4",
        "tar://a.mp4::memory://set/s.tar",
    ]  # fmt: skip
    assert rows[0]["Overall"] == rows[3]["Overall"] == rows[5]["Overall"]
    assert dover("memory://set", "--prompt", "a square", "-o", tmp_path / "folder.jsonl").exit_code == 0


def test_a_remote_file_that_changed_or_went_is_told(dover, memory, tmp_path):
    given = ("memory://set/a.mp4", "memory://set/gone.mp4", "--prompt", "x", "-o", tmp_path / "r.jsonl")
    assert dover(*given).exit_code == 1
    assert "memory://set/gone.mp4: no such file" in read_lines(tmp_path / "r.jsonl")[1]["error"]
    memory.pipe("/set/a.mp4", memory.cat("/set/b.mp4"))
    assert "memory://set/a.mp4 has changed" in dover(*given, "--resume").stderr


class Web(http.server.SimpleHTTPRequestHandler):
    """The clips, and at /503.mp4 and the like an answer of that status. Like Python's own it knows no byte ranges."""

    def send_head(self):
        status = Path(self.path).stem
        return self.send_error(int(status)) if status.isdecimal() else super().send_head()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(clips):
    """Its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Web, directory=str(clips))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_over_http(dover, web, clips, tmp_path):
    output = tmp_path / "r.jsonl"
    given = (f"{web}/a.mp4", f"{web}/gone.mp4", "--prompt", "a square", "-o", output)
    result = dover(*given)
    assert result.exit_code == 1, result.output
    rows = read_lines(output)
    assert rows[0]["error"] is None
    assert f"{web}/gone.mp4: no such file" in rows[1]["error"]
    os.utime(clips / "a.mp4", (1e9, 1e9))
    assert f"{web}/a.mp4 has changed" in dover(*given, "--resume").stderr


def test_a_web_server_in_trouble_has_not_lost_its_files(web):
    assert identity(Clip(f"{web}/404.mp4", "x")) is None
    assert identity(Clip(f"{web}/410.mp4", "x")) is None
    for status in (403, 500, 503):
        with pytest.raises(FileError, match=rf"/{status}.mp4: cannot be reached \({status}"):
            identity(Clip(f"{web}/{status}.mp4", "x"))
    with pytest.raises(FileError, match=r"a.mp4: cannot be reached"):
        identity(Clip("http://127.0.0.1:1/a.mp4", "x"))


def test_a_signed_address_is_read_by_what_is_before_its_query(web, clips):
    query = "X-Amz-Credential=AK%2F2024/us-east-1.x&X-Amz-Signature=" + "a" * 300
    (clips / "m.jsonl").write_text('{"video": "b.mp4", "Prompt": "x"}\n')
    found = list_clips([f"{web}/a.mp4?{query}", f"{web}/m.jsonl?{query}"], prompts={"a.mp4": "of a"})
    assert found == [Clip(f"{web}/a.mp4?{query}", "of a"), Clip(f"{web}/b.mp4", "x")]
    with local_file(found[0]) as path:
        assert path.suffix == ".mp4"
        assert path.read_bytes() == (clips / "a.mp4").read_bytes()


def test_a_shard_needs_a_server_that_knows_byte_ranges(web, clips):
    write_shard(clips / "s.tar", {"a.mp4": b"x" * 5000, "b.mp4": b"x" * 5000})
    clip = list_clips([f"{web}/s.tar"], "x")[1]
    with pytest.raises(FileError, match=r"expected 5000 bytes, found 20480: its server ignores byte ranges"), \
            local_file(clip):  # fmt: skip
        pass


@pytest.fixture
def bucket(clips, monkeypatch):
    """s3://bucket on a real server on this machine, found as users' own stores are: by environment variables."""
    moto = pytest.importorskip("moto.server")
    s3fs = pytest.importorskip("s3fs")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {"KEY_ID": "id", "KEY": "key"}.items():
        monkeypatch.setenv(f"AWS_{'ACCESS' if name == 'KEY_ID' else 'SECRET_ACCESS'}_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    s3fs.S3FileSystem.clear_instance_cache()
    store = s3fs.S3FileSystem()
    store.makedirs("bucket", exist_ok=True)  # the server keeps its state in this process
    store.put(f"{clips}/*.mp4", "bucket/set/")
    yield store
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_a_bucket(dover, bucket, clips, tmp_path):
    bucket.pipe("bucket/set/m.jsonl", b'{"path": "a.mp4", "Prompt": "a square"}\n{"path": "no.mp4", "Prompt": "x"}\n')
    output = tmp_path / "r.jsonl"
    given = ("s3://bucket/set/", "s3://bucket/set/m.jsonl", "--prompt", "a square", "-o", output)
    result = dover(*given)
    assert result.exit_code == 1, result.output
    rows = read_lines(output)
    assert [row["video_name"] for row in rows] == [f"s3://bucket/set/{name}.mp4" for name in ("a", "b", "c", "a", "no")]
    assert [row["error"] for row in rows[:4]] == [None] * 4
    assert rows[4]["error"] == "s3://bucket/set/no.mp4: no such file"
    dover(clips, "--prompt", "a square", "-o", tmp_path / "here.jsonl")
    for far, here in zip(rows, read_lines(tmp_path / "here.jsonl"), strict=False):
        assert far | {"video_name": ""} == here | {"video_name": ""}
    bucket.put(str(clips / "c.mp4"), "bucket/set/a.mp4")
    bucket.clear_instance_cache()
    assert "s3://bucket/set/a.mp4 has changed" in dover(*given, "--resume").stderr


def test_a_bucket_that_is_not_to_be_reached(dover, bucket, clips, tmp_path, monkeypatch):
    result = dover("s3://no-such-bucket/set/", "--prompt", "x")
    assert result.exit_code == 2
    assert "s3://no-such-bucket/set/: " in result.stderr
    table = write_table(
        tmp_path / "m.csv",
        [{"video": str(clips / "a.mp4"), "Prompt": "x"}, {"video": "s3://no-such-bucket/b.mp4", "Prompt": "x"}],
    )
    assert dover(table, "-o", tmp_path / "r.jsonl").exit_code == 1
    rows = read_lines(tmp_path / "r.jsonl")
    assert rows[0]["error"] is None
    assert "s3://no-such-bucket/b.mp4: " in rows[1]["error"]


@pytest.mark.parametrize(
    "url",
    ["reference://::file:///refs.json", "tar://a.mp4::github://o:r@main/s.tar", "tar://a::reference", "sftp://h/a.mp4"],
)
def test_a_row_reaches_files_stores_and_archives_alone(dover, clips, tmp_path, url, monkeypatch):
    monkeypatch.setattr("fsspec.core.url_to_fs", None)
    rows = [{"video": video, "Prompt": "x"} for video in (str(clips / "a.mp4"), url)]
    table = write_table(tmp_path / "m.jsonl", rows)
    assert dover(table, "-o", tmp_path / "r.jsonl").exit_code == 1
    good, refused = (row["error"] for row in read_lines(tmp_path / "r.jsonl"))
    assert good is None
    assert f"{url}: expected a protocol of file, local," in refused
    assert dover(url, "--prompt", "x").exit_code != 0


def test_a_protocol_without_its_package_says_what_to_install(dover):
    result = dover("gs://bucket/set/", "--prompt", "x")
    assert result.exit_code == 2
    assert "gcsfs" in result.stderr
    assert "nosuch://x/" in dover("nosuch://x/", "--prompt", "x").stderr
