"""Manifests, folders and tables of prompts: which clips and prompts they stand for, or what is wrong with them."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest

from dover_eval.files import VIDEO_SUFFIXES, Clip, FileError, InputError, identity, local_file
from dover_eval.inputs import NoPromptError, find_files, list_clips, read_prompts
from dover_eval.tables import TableError
from dover_eval.video.decode import decode_clip
from tests.scale.conftest import read_lines, write_shard, write_table


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
        with pytest.raises(TableError, match=rf"set{suffix}, line 1: expected a text in {column}, found .*"):
            list_clips([str(path)])
    if suffix == ".jsonl":
        shard = write_shard(tmp_path / "s.tar", {"a.mp4": b"x", "a.json": json.dumps({"prompt": prompt}).encode()})
        with pytest.raises(TableError, match=r"s.tar: a.json: expected a text in prompt, found"):
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


def test_a_folder_that_cannot_be_listed_is_refused(clips, lock):
    lock(clips / "sub" / "locked")
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


# FFmpeg's format and its encoder by suffix, one that fits at least.
WRITERS = {
    **dict.fromkeys((".mp4", ".m4v", ".f4v"), ("mp4", "libx264")),
    **dict.fromkeys((".mov", ".qt"), ("mov", "libx264")),
    **dict.fromkeys((".ts", ".mts", ".m2ts"), ("mpegts", "libx264")),
    **dict.fromkeys((".264", ".h264"), ("h264", "libx264")),
    **dict.fromkeys((".265", ".h265", ".hevc"), ("hevc", "libx265")),
    **dict.fromkeys((".avi", ".divx"), ("avi", "mpeg4")),
    **dict.fromkeys((".asf", ".wmv"), ("asf", "wmv2")),
    **dict.fromkeys((".mpg", ".mpeg"), ("mpeg", "mpeg1video")),
    ".3gp": ("3gp", "mpeg4"),
    ".3g2": ("3g2", "mpeg4"),
    ".apng": ("apng", "apng"),
    ".dv": ("dv", "dvvideo"),
    ".flv": ("flv", "flv"),
    ".gif": ("gif", "gif"),
    ".ivf": ("ivf", "libvpx-vp9"),
    ".m2v": ("mpeg2video", "mpeg2video"),
    ".mjpeg": ("mjpeg", "mjpeg"),
    ".mkv": ("matroska", "ffv1"),
    ".mxf": ("mxf", "mpeg2video"),
    ".nut": ("nut", "ffv1"),
    ".ogv": ("ogv", "libvpx"),
    ".rm": ("rm", "rv20"),
    ".vob": ("vob", "mpeg2video"),
    ".webm": ("webm", "libvpx-vp9"),
    ".wtv": ("wtv", "mpeg2video"),
    ".y4m": ("yuv4mpegpipe", "rawvideo"),
}
PIXELS = {"apng": "rgb24", "gif": "rgb8", "mjpeg": "yuvj420p"}


@pytest.mark.parametrize("suffix", sorted(WRITERS))
def test_what_is_taken_from_a_folder_can_be_read(suffix, tmp_path):
    form, codec = WRITERS[suffix]
    width, height = (720, 576) if codec == "dvvideo" else (96, 64)
    with av.open(str(tmp_path / f"clip{suffix}"), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25, width=width, height=height)
        stream.pix_fmt = PIXELS.get(codec, "yuv420p")
        for light in range(0, 240, 20):
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), light, np.uint8))
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    (found,) = find_files(str(tmp_path))
    frames = decode_clip(found, 4).frames.float().mean((1, 2, 3))
    assert frames.diff().min() > 20  # they grow lighter: all of it was read, and in its order


def test_every_suffix_of_a_video_has_been_read():
    assert set(WRITERS) == VIDEO_SUFFIXES


def test_what_may_be_a_video_and_is_not_taken_is_told(tmp_path, caplog):
    for name in ("a.mp4", "a.webp", "x/b.WEBP", "c.avif", "d.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_files(str(tmp_path)) == [str(tmp_path / "a.mp4")]
    assert caplog.messages == [f"{tmp_path}: 1 .avif, 2 .webp left out, name those that are videos"]


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
