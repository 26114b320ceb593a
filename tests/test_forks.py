"""A lock that is held where a process forks, or where its owner is copied."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import threading

import pytest
import torch

from dover_eval.forks import Lock


@pytest.fixture
def held():
    """A lock in the hands of another thread."""
    lock, taken, done = Lock(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            taken.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    yield lock
    done.set()
    thread.join()


def take(lock: Lock) -> None:
    with lock:
        pass


def test_a_lock_lets_one_thread_in(held):
    waiting = threading.Thread(target=take, args=(held,), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()


def test_a_lock_is_free_in_a_forked_child(held):
    child = multiprocessing.get_context("fork").Process(target=take, args=(held,), daemon=True)
    child.start()
    child.join(20)
    assert child.exitcode == 0


def compute() -> None:
    torch.rand(1 << 20).sin()


def test_a_forked_child_computes_though_its_parent_did_with_several_threads(held):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        compute()
        child = multiprocessing.get_context("fork").Process(target=compute, daemon=True)
        child.start()
        child.join(20)
    finally:
        torch.set_num_threads(before)
    assert child.exitcode == 0


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda lock: pickle.loads(pickle.dumps(lock))])
def test_a_copied_lock_is_a_free_one_of_its_own(held, copied):
    take(copied(held))
