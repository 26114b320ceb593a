"""One model for many: threads, coroutines, forked and pickled rewards, and a model that is moved or offloaded."""

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from dover_integrations.rewards import DoverReward, RewardError
from dover_integrations.rewards.queue import MicroBatcher

from dover_eval import VideoScorer
from dover_eval.config import usual_batch_size
from tests.integrations.rewards.conftest import make


def test_eight_threads_that_ask_one_item_each_make_one_batch(model, videos, monkeypatch):
    reward = make(model, batch_size=8)
    clips = torch.cat([videos, videos.flip(1)])
    expected = reward(clips, "a boat")
    sizes = []
    engine = reward.load()
    score_prepared = engine.scorer.score_prepared
    monkeypatch.setattr(engine.scorer, "score_prepared", lambda f, p: sizes.append(len(f)) or score_prepared(f, p))
    # A slow machine may take its time to start eight threads: size ends the wait.
    monkeypatch.setattr("dover_integrations.rewards.queue.LINGER", 5.0)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: reward(clips[i : i + 1], ["a boat"]), range(8)))
    assert sizes == [8]
    torch.testing.assert_close(torch.cat(found), expected)


def test_coroutines_share_a_batch_and_do_not_block_the_loop(model, reward, videos, prompts):
    async def main():
        asked = [reward.scores_async(videos[i : i + 1], [prompts[i]]) for i in range(4)]
        return torch.cat(await asyncio.gather(*asked))

    torch.testing.assert_close(asyncio.run(main()), reward.scores(videos, prompts))


def test_a_reward_is_pickled_by_name_and_loads_where_it_arrives(checkpoint, videos, prompts):
    reward = DoverReward(checkpoint, layout="BTCHW", value_range=(0, 1), device="cpu")
    expected = reward(videos, prompts)
    data = pickle.dumps(reward)
    assert len(data) < 2000
    assert torch.equal(pickle.loads(data)(videos, prompts), expected)


def test_a_reward_of_a_given_model_is_pickled_with_its_weights(reward, videos, prompts):
    copy = pickle.loads(pickle.dumps(reward))
    assert torch.equal(copy(videos, prompts), reward(videos, prompts))
    assert copy.__name__ == reward.__name__ == "dover_reward"


def test_a_forked_child_can_ask_after_its_parent_has(reward, videos, prompts, in_forked_child):
    """The queue's thread is not there in a child; it must be started anew, not waited for."""
    expected = reward(videos[:1], prompts[:1])
    found = in_forked_child(lambda: reward(videos[:1], prompts[:1]).tolist())
    assert found == pytest.approx(expected.tolist())


def test_a_queue_that_nobody_renews_works_in_a_forked_child_too(in_forked_child):
    queue = MicroBatcher(lambda items: items, 4)
    assert queue.submit([1])[0].result(20) == 1
    assert in_forked_child(lambda: queue.submit([2])[0].result(20)) == 2


def test_a_program_that_is_done_does_not_wait_for_its_idle_queue():
    code = "from dover_integrations.rewards import queue; queue.IDLE = 600; "
    code += "queue.MicroBatcher(lambda items: items, 1).submit([1])[0].result(20)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


def test_time_spent_waiting_for_an_earlier_batch_counts(monkeypatch):
    monkeypatch.setattr("dover_integrations.rewards.queue.LINGER", 1.0)
    entered, go, begun = threading.Event(), threading.Event(), []

    def run(items):
        begun.append(time.monotonic())
        entered.set()
        assert go.wait(20)
        return items

    queue = MicroBatcher(run, 2)
    queue.submit([0, 0])
    assert entered.wait(20)
    late = queue.submit([1])[0]
    time.sleep(1.1)
    released = time.monotonic()
    go.set()
    late.result(20)
    assert begun[1] - released < 0.8


def test_a_child_forked_while_a_thread_is_being_scored_can_ask_too(
    reward, videos, prompts, monkeypatch, in_forked_child
):
    expected = reward(videos[:1], prompts[:1])
    entered, go = threading.Event(), threading.Event()
    score_prepared = reward.scorer.score_prepared

    def held(*batch):
        if threading.current_thread() is not threading.main_thread() and os.getpid() == parent:
            entered.set()
            assert go.wait(60)
        return score_prepared(*batch)

    parent = os.getpid()
    monkeypatch.setattr(reward.scorer, "score_prepared", held)
    thread = threading.Thread(target=reward, args=(videos[:1], prompts[:1]))
    thread.start()
    assert entered.wait(20)
    found = in_forked_child(lambda: reward(videos[:1], prompts[:1]).tolist())
    go.set()
    thread.join(20)
    assert found == pytest.approx(expected.tolist())


def test_a_child_forked_while_a_thread_loads_the_reward_can_ask_too(
    checkpoint, videos, prompts, monkeypatch, in_forked_child
):
    reward = make(checkpoint, batch_size=5)
    entered, go = threading.Event(), threading.Event()
    load = VideoScorer.from_pretrained

    def held(*args, **settings):
        if os.getpid() == parent:
            entered.set()
            assert go.wait(60)
        return load(*args, **settings)

    parent = os.getpid()
    monkeypatch.setattr(VideoScorer, "from_pretrained", held)
    thread = threading.Thread(target=reward.load)
    thread.start()
    assert entered.wait(20)
    found = in_forked_child(lambda: reward(videos[:1], prompts[:1]).tolist())
    go.set()
    thread.join(20)
    assert found == pytest.approx(reward(videos[:1], prompts[:1]).tolist())


def test_a_child_forked_while_a_prompt_is_looked_up_can_ask_too(reward, videos, prompts, in_forked_child):
    expected = reward(videos[:1], prompts[:1])
    with reward.scorer.model.text_encoder._lock:
        found = in_forked_child(lambda: reward(videos[:1], prompts[:1]).tolist())
    assert found == pytest.approx(expected.tolist())


def test_one_checkpoint_is_one_model_however_its_defaults_are_spelled(checkpoint):
    settings = {"layout": "BTCHW", "value_range": (0, 1)}
    batch_size = usual_batch_size("cuda" if torch.cuda.is_available() else "cpu")
    plain, spelled = DoverReward(checkpoint, **settings), DoverReward(checkpoint, batch_size=batch_size, **settings)
    assert plain.scorer is spelled.scorer
    assert plain.scorer is DoverReward(checkpoint, device=plain.scorer.device, **settings).scorer


def test_a_reward_of_the_embedded_model_travels_with_its_weights(videos):
    reward = make(VideoScorer.from_pretrained(device="cpu"))
    copy = pickle.loads(pickle.dumps(reward))
    assert torch.equal(copy(videos[:1], "a boat"), reward(videos[:1], "a boat"))


def test_an_idle_queue_keeps_no_clip_alive():
    class Clip:
        pass

    scored, cancelled, go = Clip(), Clip(), threading.Event()
    alive = [weakref.ref(scored), weakref.ref(cancelled)]
    queue = MicroBatcher(lambda items: [go.wait(20) for _ in items], 1)
    futures = queue.submit([scored, cancelled])
    assert futures[1].cancel()
    del scored, cancelled
    go.set()
    assert futures[0].result(20)
    deadline = time.monotonic() + 0.5  # the worker ends at leisure, after two seconds
    while any(clip() for clip in alive) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [clip() for clip in alive] == [None, None]


def test_a_cancelled_coroutine_takes_along_what_has_not_begun(model, videos, monkeypatch):
    reward = make(model, batch_size=1)
    scored, score_prepared = [], reward.load().scorer.score_prepared

    def slow(frames, prompts):
        scored.append(prompts)
        time.sleep(0.2)
        return score_prepared(frames, prompts)

    monkeypatch.setattr(reward.scorer, "score_prepared", slow)

    async def give_up():
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(reward.scores_async(videos.repeat(3, 1, 1, 1, 1), "a boat"), 0.1)

    asyncio.run(give_up())
    reward(videos[:1], "another boat")
    assert len(scored) < 5


@pytest.mark.parametrize("error", [KeyboardInterrupt, ArithmeticError])
@pytest.mark.parametrize(
    "ask",
    [DoverReward.scores, lambda *asked: asyncio.run(DoverReward.scores_async(*asked))],
    ids=["call", "coroutine"],
)
def test_a_call_that_ends_early_takes_along_what_has_not_begun(model, videos, monkeypatch, ask, error):
    reward = make(model, batch_size=1)
    scored, score_prepared = [], reward.load().scorer.score_prepared

    def fail_at_first(frames, prompts):
        scored.append(prompts)
        if len(scored) == 1:
            raise error
        time.sleep(0.1)
        return score_prepared(frames, prompts)

    monkeypatch.setattr(reward.scorer, "score_prepared", fail_at_first)
    with pytest.raises(error):
        ask(reward, videos.repeat(3, 1, 1, 1, 1), "a boat")
    reward(videos[:1], "another boat")
    assert len(scored) < 5


def test_rewards_of_one_checkpoint_share_one_model(checkpoint):
    settings = {"layout": "BTCHW", "value_range": (0, 1), "device": "cpu"}
    one, other = DoverReward(checkpoint, **settings), DoverReward(checkpoint, **settings)
    assert one._engine is None  # nothing is loaded before it is asked for
    assert one.scorer is other.scorer


def test_offloaded_it_refuses_and_onloaded_it_scores_again(model, videos, prompts):
    reward = make(model)
    expected = reward(videos, prompts)
    reward.offload()
    with pytest.raises(RewardError, match="call onload"):
        reward(videos, prompts)
    reward.onload()
    assert torch.equal(reward(videos, prompts), expected)
    assert torch.equal(reward.to("cpu")(videos, prompts), expected)


def test_a_reward_made_after_the_model_has_moved_is_where_it_says(checkpoint, videos, prompts):
    moved = make(checkpoint, batch_size=6)
    expected = moved(videos, prompts)
    moved.to("meta")
    found = make(checkpoint, batch_size=6)
    assert torch.equal(found(videos, prompts), expected)
    assert moved.scorer.device.type == "meta"


@pytest.mark.parametrize("source", ["checkpoint", "model", "scorer"])
def test_a_reward_made_while_the_model_is_offloaded_shares_that(source, checkpoint, model, videos, prompts):
    source = {"checkpoint": checkpoint, "model": model, "scorer": VideoScorer(model, device="cpu")}[source]
    one = make(source)
    expected = one(videos, prompts)
    one.offload()
    other = make(source)
    with pytest.raises(RewardError, match="offloaded for all that share it: call onload"):
        other(videos, prompts)
    other.onload()
    assert torch.equal(one(videos, prompts), expected)


def test_rewards_of_one_model_move_together(model, videos, prompts):
    model = copy.deepcopy(model)
    one, other = make(model), make(model, batch_size=3)
    expected = one(videos, prompts)
    other(videos, prompts)
    one.offload()
    with pytest.raises(RewardError, match="offloaded for all that share it: call onload"):
        other(videos, prompts)
    other.onload()
    assert torch.equal(one(videos, prompts), expected)
    one.to("meta")
    assert other.scorer.device.type == "meta"
