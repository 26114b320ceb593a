"""WebDataset shards: every clip of one, or a reason."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import fsspec
import pytest

from dover_eval.files import Clip, InputError, identity, local_file
from dover_eval.inputs import list_clips
from tests.scale.conftest import read_lines, write_shard, write_table


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


def test_a_sparse_member_is_refused_by_name(tmp_path):
    """Its bytes are not where it lies."""
    header = {"major": "1", "minor": "0", "name": "a.mp4", "realsize": "9000"}
    data = b"1\n0\n4\n".ljust(tarfile.BLOCKSIZE, b"\0") + b"clip"
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("GNUSparseFile.0/a.mp4")
        info.size, info.pax_headers = len(data), {f"GNU.sparse.{key}": value for key, value in header.items()}
        archive.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match=r"s\.tar: a\.mp4 is stored without its holes"):
        list_clips([str(tmp_path / "s.tar")], "x")


def test_a_text_of_more_than_a_mebibyte_is_refused_by_name(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"a.mp4": b"x", "a.txt": b"x" * ((1 << 20) + 1)})
    with pytest.raises(InputError, match=r"s\.tar: a\.txt: expected a text of at most 1,048,576 bytes"):
        list_clips([str(shard)])


def test_a_shard_s_text_may_have_any_name(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"./a.mp4": b"x", "./a.txt": b"a square", "..txt": b"x"})
    assert [clip.prompt for clip in list_clips([str(shard)])] == ["a square"]


def test_identity_of_a_member_is_of_its_shard_and_its_place(tmp_path):
    shard = write_shard(tmp_path / "s.tar", {"a.mp4": b"a", "b.mp4": b"b"})
    first, second = list_clips([str(shard)], "x")
    assert identity(first) != identity(second)
    assert identity(Clip(str(tmp_path / "no.mp4"), "x")) is None
    with pytest.raises(InputError, match="without videos"):
        list_clips([str(write_shard(tmp_path / "e.tar", {"a.txt": b"a"}))], "x")
