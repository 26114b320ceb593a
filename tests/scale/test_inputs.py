"""Manifests, shards and places far away, by the file systems and servers that users have."""

from __future__ import annotations

import errno
import functools
import http.server
import json
import os
import tarfile
import threading
import zipfile
from pathlib import Path

import fsspec
import pytest

from dover_eval.scale.files import Clip, FileError, identity, local_file
from dover_eval.scale.inputs import InputError, NoPromptError, find_files, list_clips, read_prompts
from tests.scale.conftest import read_lines, write_shard


def write_table(path: Path, rows: list[dict[str, object]]) -> Path:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("column", ["video_name", "path", "video"])
def test_manifests(clips, suffix, column, tmp_path, monkeypatch):
    """Relative paths start at the manifest, or where one is; absolute ones and URLs are as they are."""
    monkeypatch.chdir(tmp_path)
    names = ["a.mp4", "clips/b.mp4", str(clips / "c.mp4"), "s3://bucket/d.mp4", "a.mp4"]
    rows = [{"seed": str(i), column: name, "Prompt": f"take {i}"} for i, name in enumerate(names)]
    found = list_clips([str(write_table(clips / f"set{suffix}", rows))])
    assert [clip.prompt for clip in found] == [f"take {i}" for i in range(5)]
    assert [clip.video for clip in found] == [
        str(clips / "a.mp4"), "clips/b.mp4", str(clips / "c.mp4"), "s3://bucket/d.mp4", str(clips / "a.mp4"),
    ]  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_absent_columns_are_told_with_those_that_are_there(dover, suffix, tmp_path):
    for row in ({"file": "a.mp4", "Prompt": "x"}, {"video": "a.mp4", "caption": "x"}):
        path = write_table(tmp_path / f"set{suffix}", [row])
        result = dover(path)
        assert result.exit_code == 2
        assert (
            f"expected the columns Prompt and one of video_name, path, video, found {', '.join(row)}" in result.stderr
        )


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.csv", b"", "found none"),
        ("m.csv", b"video,Prompt\n", "a table without rows"),
        ("m.csv", b"video,Prompt\na.mp4,\n", "line 2: an empty Prompt"),
        ("m.csv", b"video,Prompt\na.mp4\n", "line 2: an empty Prompt"),
        ("m.csv", b"video,Prompt\n\xff\xfe.mp4,x\n", "cannot be read"),
        ("m.jsonl", b"", "found none"),
        ("m.jsonl", b'{"video": "a.mp4", "Prompt": "x"}\n{"video": "b.m', "line 2: no JSON"),
        ("m.jsonl", b'["a.mp4", "x"]\n', "line 1: expected an object"),
        ("m.jsonl", b'{"video": "a.mp4", "Prompt": "x"}\n{"video": "b.mp4"}\n', "line 2: an empty Prompt"),
        ("m.parquet", b"PAR1 and then nothing", "no whole Parquet file"),
        ("m.tar", b"no tar file" * 100, "expected an uncompressed tar file"),
        ("m.tar", b"", "expected an uncompressed tar file"),
    ],
)
def test_broken_manifests_and_shards_say_what_is_wrong(dover, name, content, words, tmp_path):
    (tmp_path / name).write_bytes(content)
    result = dover(tmp_path / name)
    assert result.exit_code == 2
    assert words in result.stderr
    assert name in result.stderr


@pytest.mark.parametrize("prompt", [["a dog"], {"en": "a dog"}, True, b"\xff"])
def test_what_is_no_text_is_no_prompt_and_no_name(tmp_path, prompt):
    suffix = ".parquet" if isinstance(prompt, bytes) else ".jsonl"
    for row in ({"video": "a.mp4", "Prompt": prompt}, {"video": prompt, "Prompt": "x"}):
        column = next(column for column, value in row.items() if value is prompt)
        path = write_table(tmp_path / f"set{suffix}", [row])
        with pytest.raises(InputError, match=rf"set{suffix}, line 1: expected a text in {column}, found .*"):
            list_clips([str(path)])
    if suffix == ".jsonl":
        shard = write_shard(tmp_path / "s.tar", {"a.mp4": b"x", "a.json": json.dumps({"prompt": prompt}).encode()})
        with pytest.raises(InputError, match=r"s.tar: a.json: expected a text in prompt, found"):
            list_clips([str(shard)])


def test_bytes_are_a_text_where_they_are_utf_8_and_numbers_are_one(tmp_path):
    rows = [{"video": "a.mp4", "Prompt": "ein Häuschen".encode()}]
    assert list_clips([str(write_table(tmp_path / "set.parquet", rows))])[0].prompt == "ein Häuschen"
    assert list_clips([str(write_table(tmp_path / "set.jsonl", [{"video": 1, "Prompt": 3}]))])[0][:2] == ("1", "3")


def test_results_are_of_paths_from_here(clips, tmp_path, monkeypatch):
    """Though another file lies where a manifest beside them would have it."""
    monkeypatch.chdir(tmp_path)
    (clips / "clips").mkdir()
    (clips / "clips" / "a.mp4").write_text("another")
    for columns, found in (({"fingerprint": "f"}, "clips/a.mp4"), ({}, "clips/clips/a.mp4")):
        path = write_table(Path("clips/r.jsonl"), [{"video_name": "clips/a.mp4", "Prompt": "x", **columns}])
        assert list_clips([str(path)])[0].video == found
    monkeypatch.chdir(clips.parent.parent)
    (clips / "clips" / "clips").mkdir()
    path = write_table(clips / "r.jsonl", [{"video_name": "clips/a.mp4", "Prompt": "x", "fingerprint": "f"}])
    assert list_clips([str(path)])[0].video == str(clips / "clips" / "a.mp4")


def test_results_that_are_no_manifest_are_told(tmp_path):
    with pytest.raises(InputError, match=r"r.json: a .json is no manifest, expected .csv, .jsonl, .parquet"):
        list_clips([str(tmp_path / "r.json")], "x")


def test_a_missing_manifest(dover, tmp_path):
    result = dover(tmp_path / "m.csv")
    assert result.exit_code == 2
    assert "No such file" in result.stderr


def test_a_webdataset_shard_scores_as_its_files_do(dover, clips, tmp_path):
    shard = write_shard(
        tmp_path / "shards-000.tar",
        {
            "x/0001.mp4": (clips / "a.mp4").read_bytes(),
            "x/0001.txt": b"a square\n",
            "x/0002.json": b'{"caption": "two squares", "seed": 3}',
            "x/0002.mp4": (clips / "b.mp4").read_bytes(),
            "x/0003.mp4": (clips / "c.mp4").read_bytes(),
            "x/0004.mp4": b"no video",
        },
    )
    result = dover(tmp_path / "shards-*.tar", "--prompt", "no text of its own", "-o", tmp_path / "r.jsonl")
    assert result.exit_code == 1
    rows = read_lines(tmp_path / "r.jsonl")
    assert [row["video_name"] for row in rows] == [f"tar://x/000{i}.mp4::{shard}" for i in (1, 2, 3, 4)]
    assert [row["Prompt"] for row in rows] == ["a square", "two squares", *["no text of its own"] * 2]
    assert f"tar://x/0004.mp4::{shard}: cannot be decoded" in rows[3]["error"]
    with fsspec.open(rows[0]["video_name"]) as member:  # the name is one that fsspec opens
        assert member.read() == (clips / "a.mp4").read_bytes()
    table = write_table(tmp_path / "set.csv", [{"path": str(clips / "a.mp4"), "Prompt": "a square"}])
    dover(table, "-o", tmp_path / "files.jsonl")
    (expected,) = read_lines(tmp_path / "files.jsonl")
    assert rows[0] | {"video_name": ""} == expected | {"video_name": ""}


def test_no_clip_of_a_shard_is_lost_for_the_dots_in_its_name(tmp_path):
    """WebDataset ends a name at its first dot; people's names have more."""
    shard = write_shard(
        tmp_path / "s.tar",
        {
            "wan2.1_0.mp4": b"x", "wan2.1_0.txt": b"zero", "wan2.1_1.mp4": b"x", "wan2.1_1.txt": b"one",
            "wan2.1_2.mp4": b"x",  # its prompt is not there, and is no other's
            "d/k.mp4": b"x", "d/k.mov": b"x", "d/k.txt": b"both",
            "d/e.low.mp4": b"x", "d/e.caption.txt": b"by the first dot",
            "d/f.low.mp4": b"x", "d/f.high.mp4": b"x", "d/f.txt": b"of the key",
        },
    )  # fmt: skip
    found = {clip.video.split("::")[0][6:]: clip.prompt for clip in list_clips([str(shard)], "none of its own")}
    assert found == {
        "wan2.1_0.mp4": "zero", "wan2.1_1.mp4": "one", "wan2.1_2.mp4": "none of its own",
        "d/k.mp4": "both", "d/k.mov": "both", "d/e.low.mp4": "by the first dot",
        "d/f.low.mp4": "of the key", "d/f.high.mp4": "of the key",
    }  # fmt: skip


PAIRS = {f"{i}.{suffix}": b"x" * 700 for i in range(4) for suffix in ("mp4", "txt")}
THIRD = 4 * (512 + 1024)  # where the third clip's header is, in bytes


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: THIRD + 100] + b"\xff" + data[THIRD + 101 :],  # in a header
        lambda data: data[:THIRD],
        lambda data: data[: THIRD + 100],
        lambda data: data[:THIRD] + bytes(512),  # half of an end mark
        lambda data: data[:THIRD] + bytes(len(data) - THIRD),
        lambda data: data + data,
    ],
    ids=["a byte of a header", "cut at a member", "cut in a header", "half a mark", "zeros", "two archives"],
)
def test_a_damaged_shard_is_refused_and_not_read_as_a_shorter_one(tmp_path, damage):
    shard = write_shard(tmp_path / "s.tar", {**PAIRS, "5.mp4": b"x" * 9000})
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(InputError, match=r"s.tar: its members end at byte \d+ of \d+, expected the end mark"):
        list_clips([str(shard)])


@pytest.mark.parametrize("record", [512, 10240, 1 << 20])
def test_a_shard_may_end_as_writers_end_it(tmp_path, record):
    """With no more than the mark, or with zeros up to a record of any size."""
    shard = write_shard(tmp_path / "s.tar", PAIRS)
    data = shard.read_bytes()[: 2 * THIRD + 1024]
    shard.write_bytes(data + bytes(-len(data) % record))
    assert len(list_clips([str(shard)])) == 4


def write_links(path: Path, links: dict[str, tuple[bytes, str]]) -> Path:
    """A shard of a clip, its text, and links (their kind and target)."""
    write_shard(path, {"d/a.mp4": b"clip", "d/a.txt": b"a square"})
    with tarfile.open(path, "a") as archive:
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def test_links_of_a_shard_are_the_members_that_they_lead_to(tmp_path):
    hard, soft = tarfile.LNKTYPE, tarfile.SYMTYPE
    links = {
        "d/b.mp4": (hard, "d/a.mp4"), "d/b.txt": (hard, "d/a.txt"), "e/c.mp4": (soft, "../d/b.mp4"),
        "e/c.txt": (soft, "../d/a.txt"), "d/a.mp4": (hard, "d/a.mp4"),
    }  # fmt: skip
    shard = write_links(tmp_path / "s.tar", links)
    clips = list_clips([str(shard)])
    assert [clip.video for clip in clips] == [f"tar://{name}.mp4::{shard}" for name in ("d/a", "d/b", "e/c")]
    assert {clip.prompt for clip in clips} == {"a square"}
    for clip in clips:
        with local_file(clip) as path:
            assert path.read_bytes() == b"clip"
        with fsspec.open(clip.video) as member:
            assert member.read() == b"clip"


@pytest.mark.parametrize(
    ("links", "name"),
    [
        ({"b.mp4": (tarfile.SYMTYPE, "/data/b.mp4")}, "b.mp4 is a link to /data/b.mp4"),
        ({"b.mp4": (tarfile.SYMTYPE, "c.mp4"), "c.mp4": (tarfile.SYMTYPE, "b.mp4")}, "b.mp4 is a link to c.mp4"),
    ],
)
def test_links_of_a_shard_that_lead_nowhere_are_refused_by_name(tmp_path, links, name):
    with pytest.raises(InputError, match=f"s.tar: {name}, which is no file of this shard"):
        list_clips([str(write_links(tmp_path / "s.tar", links))], "x")


@pytest.mark.parametrize("member", ["/data/a.mp4", "a::b.mp4"])
def test_a_member_that_no_url_can_name_is_refused(tmp_path, member):
    with pytest.raises(InputError, match=f"'{member}': expected a name without / in front and without ::"):
        list_clips([str(write_shard(tmp_path / "s.tar", {member: b"x"}))], "x")


def test_a_shard_s_text_may_have_any_name(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"./a.mp4": b"x", "./a.txt": b"a square", "..txt": b"x"})
    assert [clip.prompt for clip in list_clips([str(shard)])] == ["a square"]


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_members_of_an_archive_are_scored_by_their_names(dover, clips, tmp_path, kind):
    """The results of a shard are a manifest, too."""
    archive = tmp_path / f"s.{kind}"
    if kind == "tar":
        write_shard(archive, {"x/a.mp4": (clips / "a.mp4").read_bytes()})
    else:
        with zipfile.ZipFile(archive, "w") as file:
            file.write(clips / "a.mp4", "x/a.mp4")
    name = f"{kind}://x/a.mp4::{archive}"
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    assert dover(name, "--prompt", "a square", "-o", first).exit_code == 0
    result = dover(first, "-o", again)
    assert result.exit_code == 0, result.output
    assert first.read_bytes() == again.read_bytes()
    (row,) = read_lines(again)
    assert row["video_name"] == name
    table = write_table(tmp_path / "p.csv", [{"video_name": "a.mp4", "Prompt": "a square"}])
    assert dover(f"{kind}://x/*.mp4::{archive}", "--prompts", table, "-o", tmp_path / "p.jsonl").exit_code == 0
    assert (tmp_path / "p.jsonl").read_bytes() == first.read_bytes()
    gone = dover(f"{kind}://x/gone.mp4::{archive}", "--prompt", "x", "-o", tmp_path / "gone.jsonl")
    assert gone.exit_code == 1
    assert "no such file" in read_lines(tmp_path / "gone.jsonl")[0]["error"]


def test_two_colons_in_a_local_name_are_a_part_of_it(tmp_path):
    (tmp_path / "a::b.mp4").touch()
    assert [clip.prompt for clip in list_clips([str(tmp_path)], prompts={"a::b.mp4": "x"})] == ["x"]


def test_a_folder_that_cannot_be_listed_is_refused(clips, monkeypatch):
    """Root, whom the tests may run as, lists every folder."""
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return listed(path)

    (clips / "sub" / "locked").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(InputError, match=r"sub/locked: a folder that cannot be listed \(Permission denied\)"):
        list_clips([str(clips)], "x")


def test_linked_folders_are_read_once_and_loops_end(clips, tmp_path):
    """By their own name where it is there."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (clips / "a.mp4").rename(outside / "a.mp4")
    (clips / "1").symlink_to(outside)
    (clips / "0").symlink_to(clips / "sub")
    (clips / "sub").mkdir()
    (clips / "b.mp4").rename(clips / "sub" / "b.mp4")
    (clips / "sub" / "up").symlink_to(clips)
    (outside / "back").symlink_to(clips / "1")
    assert find_files(str(clips)) == [str(clips / name) for name in ("1/a.mp4", "c.mp4", "sub/b.mp4")]


def test_a_manifest_may_begin_with_an_empty_line(clips, tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('\n{"video_name": "a.mp4", "Prompt": "x"}\n\n{"video_name": "b.mp4", "Prompt": "y"}\n')
    assert [clip.prompt for clip in list_clips([str(path)])] == ["x", "y"]


def test_clips_without_a_prompt_are_named(clips, tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"k.mp4": b"x"})
    with pytest.raises(NoPromptError, match=r"no prompt for a.mp4, k.mp4"):
        list_clips([str(clips / "a.mp4"), str(shard)])


def test_a_file_named_twice_is_one_clip_and_a_manifest_s_two_rows_are_two(clips, tmp_path):
    assert len(list_clips([str(clips), str(clips / "a.mp4")], "a square")) == 3
    table = write_table(tmp_path / "m.csv", [{"video": str(clips / "a.mp4"), "Prompt": "x"}] * 2)
    assert len(list_clips([str(table), str(table)])) == 4


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


def test_a_protocol_without_its_package_says_what_to_install(dover):
    result = dover("gs://bucket/set/", "--prompt", "x")
    assert result.exit_code == 2
    assert "gcsfs" in result.stderr
    assert "nosuch://x/" in dover("nosuch://x/", "--prompt", "x").stderr


def test_identity_of_a_member_is_of_its_shard_and_its_place(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"a.mp4": b"a", "b.mp4": b"b"})
    first, second = list_clips([str(shard)], "x")
    assert identity(first) != identity(second)
    assert identity(Clip(str(tmp_path / "no.mp4"), "x")) is None
    with pytest.raises(InputError, match="without videos"):
        list_clips([str(write_shard(tmp_path / "e.tar", {"a.txt": b"a"}))], "x")


def test_a_clip_keeps_its_name_where_paths_start_in_another_folder(clips, tmp_path):
    write_shard(clips / "s.tar", {"a.mp4": (clips / "a.mp4").read_bytes()})
    for clip in (
        Clip("a.mp4", "x", folder=str(clips)),
        Clip("tar://a.mp4::s.tar", "x", folder=str(clips)),
        list_clips([str(clips / "s.tar")], "x")[0]._replace(folder=str(tmp_path)),
    ):
        assert identity(clip) is not None
        with local_file(clip) as path:
            assert path.read_bytes() == (clips / "a.mp4").read_bytes()
    assert Clip("s3://bucket/a.mp4", "x", folder=str(clips)).place == "s3://bucket/a.mp4"
    with pytest.raises(FileError, match=r"^tar://b.mp4::s.tar: no such file"), \
            local_file(Clip("tar://b.mp4::s.tar", "x", folder=str(clips))):  # fmt: skip
        pass


def test_a_prompt_is_found_by_the_last_parts_of_a_path_and_whatever_form_unicode_has(tmp_path):
    for name in ("a/1.mp4", "b/1.mp4", "e\u0301.mp4"):  # as a file system that decomposes has it
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    table = tmp_path / "prompts.csv"
    table.write_text("video_name,Prompt\n./a/1.mp4,one\nb/1.mp4,other\n\u00e9.mp4,accent\n", encoding="utf-8")
    found = list_clips([str(tmp_path)], prompts=read_prompts(table))
    assert [clip.prompt for clip in found] == ["one", "other", "accent"]


def test_half_a_character_is_refused_before_anything_is_scored(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.mp4"
    Path(os.fsdecode(name)).touch()
    with pytest.raises(InputError, match="a name that is not UTF-8"):
        list_clips([str(tmp_path)], "a cat")
    path = write_table(tmp_path / "set.jsonl", [{"video": "a.mp4", "Prompt": "\ud83d"}])
    path.write_text(path.read_text() + "\n")  # and an empty last line is nothing
    with pytest.raises(InputError, match=r"expected a text for its prompt, got .* \(not UTF-8"):
        list_clips([str(path)])


@pytest.mark.parametrize("prompts", [None, {"a.mp4": "x"}])
def test_a_mistyped_name_is_said_to_be_missing_and_not_to_lack_a_prompt(clips, prompts):
    with pytest.raises(InputError, match="nosuch: there is no such file or folder"):
        list_clips([str(clips / "nosuch")], prompts=prompts)
