"""What names a file's bytes."""

from __future__ import annotations

import hashlib

import pytest

from dover_eval.hashing import file_sha256


def test_files_have_the_digest_of_their_bytes_one_after_another(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(bytes(range(256)) * 8192)  # more than is read at a time
    second.write_bytes(b"more")
    assert file_sha256(first) == hashlib.sha256(first.read_bytes()).hexdigest()
    assert file_sha256(str(first), second) == hashlib.sha256(first.read_bytes() + b"more").hexdigest()
    with pytest.raises(FileNotFoundError):
        file_sha256(tmp_path / "c")
