"""The cache on disk: never more than its bound, whole entries alone, and any number of processes at once."""

import multiprocessing
import os

import pytest
import torch
from filelock import FileLock

from dover_eval.training.cache import TensorCache

ENTRY = 40_000  # bytes of a test's tensor


def tensors(seed):
    return {"frames": torch.randint(0, 255, (ENTRY,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))}


def never():
    raise AssertionError("was made again")


def stored_bytes(cache):
    with FileLock(cache.folder / "lock"):  # or an entry may go between being listed and being looked at
        return sum(path.stat().st_size for path in cache.folder.glob("*.bin"))


def test_what_was_made_is_read_the_next_time(tmp_path):
    made = TensorCache(tmp_path, 10 * ENTRY).get("a", lambda: tensors(1))
    found = TensorCache(tmp_path, 10 * ENTRY).get("a", never)
    assert torch.equal(found["frames"], made["frames"])


def test_it_stays_within_its_bound_and_keeps_what_was_read_last(tmp_path):
    cache = TensorCache(tmp_path, 5 * ENTRY)
    for i in range(20):
        cache.get(str(i), lambda i=i: tensors(i))
        assert stored_bytes(cache) <= 5 * ENTRY
        os.utime(tmp_path / f"{i}.bin", ns=(i, i))  # clocks may be too coarse to tell entries apart
        if i:
            cache.get("0", never)  # read in every round: it never is what was not read for longest
    assert not (tmp_path / "1.bin").exists()
    assert (tmp_path / "19.bin").exists()


def test_an_entry_beyond_the_bound_is_given_and_not_kept(tmp_path):
    cache = TensorCache(tmp_path, ENTRY // 2)
    assert len(cache.get("a", lambda: tensors(1))["frames"]) == ENTRY
    assert stored_bytes(cache) == 0


@pytest.mark.parametrize("damage", ["cut short", "a bit turned", "empty", "text"])
def test_a_damaged_entry_is_made_again(tmp_path, damage):
    cache = TensorCache(tmp_path, 10 * ENTRY)
    cache.get("a", lambda: tensors(1))
    path = tmp_path / "a.bin"
    stored = path.read_bytes()
    turned = bytearray(stored)
    turned[-100] ^= 1
    path.write_bytes({"cut short": stored[:-7], "a bit turned": bytes(turned), "empty": b"", "text": b"x" * 99}[damage])
    assert torch.equal(cache.get("a", lambda: tensors(2))["frames"], tensors(2)["frames"])
    assert torch.equal(cache.get("a", never)["frames"], tensors(2)["frames"])


def test_what_a_killed_process_left_is_cleared(tmp_path):
    cache = TensorCache(tmp_path, 2 * ENTRY)
    (tmp_path / ".writing-abc").write_bytes(b"half")
    (tmp_path / "total").write_text("no number")
    for i in range(3):
        cache.get(str(i), lambda i=i: tensors(i))
    assert stored_bytes(cache) <= 2 * ENTRY
    assert not (tmp_path / ".writing-abc").exists()


def work(folder, seed):
    """Reads and makes the same entries as its peers, more than fit, and checks each."""
    cache = TensorCache(folder, 4 * ENTRY + 4000)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed)) % 8
    for i in order.tolist():
        found = cache.get(str(i), lambda i=i: tensors(i))
        assert torch.equal(found["frames"], tensors(i)["frames"])
        assert stored_bytes(cache) <= 4 * ENTRY + 4000


def test_several_processes_share_a_folder_that_is_too_small_for_them(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=work, args=(tmp_path, seed)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert stored_bytes(TensorCache(tmp_path, 0)) <= 4 * ENTRY + 4000
