"""A result's file appears whole or not at all."""

import os
import threading

import pytest

from dover_eval.replacing import replacing


def test_nothing_is_there_before_it_is_whole(tmp_path):
    path = tmp_path / "r.csv"
    with replacing(path) as draft:
        draft.write_text("new")
        assert draft.parent == tmp_path
        assert draft.suffix == ".csv"  # for what tells the format by the name
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["r.csv"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_what_fails_leaves_what_was_there_and_nothing_else(tmp_path, error):
    path = tmp_path / "r.csv"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as draft:  # noqa: PT012
        draft.write_text("ne")
        raise error
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["r.csv"]


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
def test_the_permissions_of_what_is_replaced_stay(tmp_path, mode):
    path = tmp_path / "r.csv"
    path.write_text("old")
    path.chmod(mode)
    with replacing(path) as draft:
        draft.write_text("new")
        assert draft.stat().st_mode & 0o077 == 0
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == mode


def test_a_new_file_has_the_permissions_that_open_gives(tmp_path):
    (tmp_path / "opened").write_text("x")
    with replacing(tmp_path / "r.csv") as draft:
        draft.write_text("new")
    assert (tmp_path / "r.csv").stat().st_mode == (tmp_path / "opened").stat().st_mode


def test_a_link_under_the_draft_s_name_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "draft").symlink_to("victim")
    with replacing(tmp_path / "r.csv", tmp_path / "draft") as draft:
        draft.write_text("new")
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "r.csv").is_symlink()


def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path):
    path = tmp_path / f"{'n' * 251}.csv"
    with replacing(path) as draft:
        draft.write_text("new")
    assert path.read_text() == "new"


def test_a_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "r.csv").mkdir()
    with pytest.raises(IsADirectoryError), replacing(tmp_path / "r.csv") as draft:
        draft.write_text("new")
    assert os.listdir(tmp_path) == ["r.csv"]
    assert os.listdir(tmp_path / "r.csv") == []


def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "r.csv"
    link.symlink_to(tmp_path / "there" / "target.csv")
    with replacing(link) as draft:
        draft.write_text("new")
    assert link.is_symlink()
    assert (tmp_path / "there" / "target.csv").read_text() == "new"


def test_a_pipe_is_written_and_not_replaced(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    read = []
    reader = threading.Thread(target=lambda: read.append(path.read_text()))
    reader.start()
    with replacing(path) as draft:
        draft.write_text("new")
    reader.join(10)
    assert read == ["new"]
    assert path.is_fifo()
