"""Each framework's file, called as that framework's own source calls it.

The frameworks themselves are not installed. Where a file derives from one's class, a stand-in has the constructor and
the attributes that the real one has.
"""

import asyncio
import importlib
import inspect
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from dover_integrations.rewards import RewardError

from dover_eval import VideoScorer
from dover_eval.opinion import SCORE_NAMES


@pytest.fixture
def expected(model, videos, prompts):
    return VideoScorer(model, device="cpu").score(videos, prompts, layout="BTCHW").values


@pytest.fixture(autouse=True)
def embedded(checkpoint, monkeypatch):
    """The small checkpoint in place of the embedded one, for factories that take nothing but a device."""
    from dover_integrations.rewards import engine

    load = VideoScorer.from_pretrained
    stand_in = SimpleNamespace(from_pretrained=lambda name, **settings: load(name or checkpoint, **settings))
    monkeypatch.setattr(engine, "VideoScorer", stand_in)


def install(monkeypatch, **modules):
    """Stand-in modules, and dover-eval's file that imports them, fresh."""
    for name, contents in modules.items():
        parts = name.replace("__", ".").split(".")
        for i in range(1, len(parts) + 1):
            path = ".".join(parts[:i])
            if path not in sys.modules:
                monkeypatch.setitem(sys.modules, path, ModuleType(path))
        for key, value in contents.items():
            setattr(sys.modules[".".join(parts)], key, value)


def load_fresh(monkeypatch, name):
    monkeypatch.delitem(sys.modules, f"dover_integrations.rewards.{name}", raising=False)
    module = importlib.import_module(f"dover_integrations.rewards.{name}")
    monkeypatch.delitem(sys.modules, f"dover_integrations.rewards.{name}")
    return module


def test_flow_grpo(videos, prompts, expected):
    """multi_score finds `device` in the code object, iterates over the scores, and runs in a pool of eight."""
    from dover_integrations.rewards.flow_grpo import dover_score

    assert "device" in dover_score.__code__.co_varnames
    score = dover_score(torch.device("cpu"))
    with ThreadPoolExecutor(max_workers=8) as executor:
        futures = [executor.submit(score, videos[i : i + 2], prompts[i : i + 2], [{}, {}]) for i in (0, 2)]
        scores = [future.result() for future in futures]
    assert all(metadata == {} for _, metadata in scores)
    weighted = [0.5 * value for values, _ in scores for value in values]
    torch.testing.assert_close(torch.as_tensor(weighted), 0.5 * expected[:, 4])


def test_flow_grpo_takes_half_precision(videos, prompts, expected):
    from dover_integrations.rewards.flow_grpo import dover_score

    scores, _ = dover_score("cpu")(videos.bfloat16(), prompts, {})
    torch.testing.assert_close(scores, expected[:, 4], atol=2e-2, rtol=0)


def test_genrl(videos, prompts, expected):
    """load_reward_fn takes `{name}_score` from the module; multi_score weighs and stacks the "avg" of each."""
    module = importlib.import_module("dover_integrations.rewards.genrl")
    rewards = {"dover": 1.0, "dover_alignment": 0.5}
    weighted = []
    for name, weight in rewards.items():
        out, metadata = getattr(module, f"{name}_score")(torch.device("cpu"))(videos, prompts, [{}] * 4)
        assert isinstance(out, dict)
        assert metadata == {}
        weighted.append(out.get("avg") * weight)
    average = torch.stack(weighted).mean(0)
    torch.testing.assert_close(average, (expected[:, 4] + 0.5 * expected[:, 1]) / 2)


def test_genrl_has_every_aspect(videos, prompts, expected):
    module = importlib.import_module("dover_integrations.rewards.genrl")
    for column, name in enumerate(["dover_traditional", "dover_alignment", "dover_aesthetic", "dover_temporal"]):
        out, _ = getattr(module, f"{name}_score")("cpu")(videos, prompts, None, only_strict=False)
        torch.testing.assert_close(out["avg"], expected[:, column])


def test_genrl_scores_a_batch_once_for_all_its_aspects_and_anew_when_it_changes(videos, prompts, monkeypatch):
    module = importlib.import_module("dover_integrations.rewards.genrl")
    scorer = module._latest(None, "cpu")._reward.scorer
    scored, score_prepared = [], scorer.score_prepared
    monkeypatch.setattr(scorer, "score_prepared", lambda f, p: scored.extend(p) or score_prepared(f, p))
    images = videos.clone()
    ask = lambda: [
        getattr(module, f"dover{name}_score")("cpu")(images, prompts)[0]["avg"] for name in ("", "_temporal")
    ]
    first = ask()
    assert scored == prompts
    images[:, ::2] = 0  # in place
    assert not torch.equal(ask()[1], first[1])
    assert scored == 2 * prompts


def test_what_is_done_to_a_genrl_reward_in_place_leaves_the_next_as_it_was(videos, prompts, expected):
    module = importlib.import_module("dover_integrations.rewards.genrl")
    score = module.dover_score("cpu")
    score(videos, prompts)[0]["avg"].sub_(3)
    torch.testing.assert_close(score(videos, prompts)[0]["avg"], expected[:, 4])


def test_genrl_in_a_child_forked_while_a_batch_is_scored(videos, prompts, expected, in_forked_child):
    module = importlib.import_module("dover_integrations.rewards.genrl")
    score = module.dover_score("cpu")
    with module._latest(None, "cpu")._lock:
        found = in_forked_child(lambda: score(videos, prompts)[0]["avg"].tolist())
    assert found == pytest.approx(expected[:, 4].tolist())


def test_verl_omni(videos, prompts, expected, checkpoint):
    """The manager sees a coroutine function and awaits it by keyword for one uint8 sample, many on one loop."""
    from dover_integrations.rewards.verl_omni import compute_score

    score = partial(compute_score, model=str(checkpoint), device="cpu")  # as reward_kwargs are bound
    assert inspect.iscoroutinefunction(score)
    assert pickle.loads(pickle.dumps(compute_score)) is compute_score

    async def run_single(video, prompt):
        result = await score(
            data_source="videos", solution_image=video, ground_truth=prompt, extra_info={"num_turns": None}
        )
        return result["score"], {key: value for key, value in result.items() if key != "score"}

    async def main():
        pixels = (videos * 255).round().byte()
        return await asyncio.gather(*(run_single(*pair) for pair in zip(pixels, prompts, strict=True)))

    results = asyncio.run(main())
    assert [score for score, _ in results] == pytest.approx(expected[:, 4].tolist(), abs=2e-2)
    assert set(results[0][1]) == set(SCORE_NAMES)
    assert all(type(value) is float for value in results[0][1].values())


def test_flow_factory(monkeypatch, videos, prompts, expected):
    """The processor builds the model from (config, accelerator) and calls it with lists, by keyword."""

    class PointwiseRewardModel:
        required_fields = ("image", "prompt")
        use_tensor_inputs = False

        def __init__(self, config, accelerator):
            self.config, self.accelerator = config, accelerator
            self.device = accelerator.device if config.device == torch.device("cuda") else config.device
            self.dtype, self.model = config.dtype, None

    install(
        monkeypatch,
        flow_factory__rewards__abc={
            "PointwiseRewardModel": PointwiseRewardModel,
            "RewardModelOutput": lambda rewards, extra_info=None: SimpleNamespace(rewards=rewards),
        },
    )
    module = load_fresh(monkeypatch, "flow_factory")
    config = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, batch_size=16)
    model = module.DoverRewardModel(config, SimpleNamespace(device=torch.device("cpu")))
    assert model.required_fields == ("prompt", "video")
    assert model.use_tensor_inputs
    output = model(prompt=prompts, video=list(videos))
    torch.testing.assert_close(output.rewards, expected[:, 4])
    assert model.to(torch.device("cpu")) is model
    with pytest.raises(ValueError, match="expected video"):
        model(prompt=prompts, image=[])


def test_fastvideo(videos, prompts, expected):
    """MultiRewardScorer detaches the answer, casts it, and insists on shape (B,)."""
    from dover_integrations.rewards.fastvideo import DoverScorer

    scores = DoverScorer(device="cpu")(videos.permute(0, 2, 1, 3, 4), prompts).detach().float()
    assert scores.ndim == 1
    torch.testing.assert_close(scores, expected[:, 4])


@pytest.fixture
def unirl(monkeypatch):
    class LocalRewardBackend:
        canonical_model_name = None

        def __init__(self, model_name=None, device="cuda", dtype=torch.float16, batch_size=8, timeout=60.0):
            self.model_name, self.device, self.batch_size, self.model = model_name, device, batch_size, None
            self._load_model()

    install(
        monkeypatch,
        unirl__reward__base={"BaseRewardComponentSpec": object},
        unirl__reward__local__base={"LocalRewardBackend": LocalRewardBackend},
    )
    module = load_fresh(monkeypatch, "unirl")
    return module.DoverRewardBackend(config=module.DoverSpec(), base_device="cpu")


def test_unirl(unirl, videos, prompts, expected):
    """A request has channel-first clips; the answer is a list of floats, and onload comes before scoring."""
    request = SimpleNamespace(videos=[clip.permute(1, 0, 2, 3) for clip in videos], prompts=prompts)
    unirl.offload()
    with pytest.raises(RewardError, match="onload"):
        unirl._compute_model_rewards(request)
    unirl.onload()
    rewards = unirl._compute_model_rewards(request)
    assert all(type(reward) is float for reward in rewards)
    assert rewards == pytest.approx(expected[:, 4].tolist(), rel=1e-5)
    assert unirl.covers_prompt_video()
    assert unirl.input_kind == "video"


def test_unirl_raises_for_frames_that_hold_nan(unirl, videos, prompts):
    request = SimpleNamespace(videos=[clip.permute(1, 0, 2, 3) * torch.nan for clip in videos], prompts=prompts)
    with pytest.raises(RewardError, match="hold NaN"):
        unirl._compute_model_rewards(request)


def test_unirl_has_gradients(unirl, videos, prompts, expected):
    media = videos.permute(0, 2, 1, 3, 4).clone().requires_grad_()
    rewards = unirl.compute_rewards_differentiable(media, prompts)
    torch.testing.assert_close(rewards.detach(), expected[:, 4])
    rewards.mean().backward()
    assert media.grad.norm() > 0


def test_videox_fun(videos, prompts, expected):
    """The trainer builds it with device and dtype, and calls backward on the loss that comes back first."""
    from dover_integrations.rewards.videox_fun import DoverLoss

    loss_fn = DoverLoss(device="cpu", dtype=torch.float32, max_reward=5, loss_scale=0.5)
    frames = videos.permute(0, 2, 1, 3, 4).clone().requires_grad_()
    loss, reward = loss_fn(frames, prompts)
    assert reward.item() == pytest.approx(expected[:, 4].mean().item(), rel=1e-5)
    assert loss.item() == pytest.approx(0.5 * (5 - expected[:, 4].mean().item()), rel=1e-5)
    loss.backward()
    assert frames.grad.norm() > 0
    with torch.no_grad():  # the validation script
        torch.testing.assert_close(loss_fn.get_reward(frames, prompts), expected[:, 4])


@pytest.mark.parametrize("single_frame", [True, False], ids=["frame", "clip"])
def test_vader(videos, prompts, single_frame):
    """Frames (B,C,H,W) around [-1, 1], not clamped; the loss is repeated, the reward read with item()."""
    from dover_integrations.rewards.vader import dover_loss_fn

    loss_fn = dover_loss_fn(grad_scale=0.1, device="cpu", torch_dtype=torch.float32)
    frames = (videos[:, 0] if single_frame else videos).mul(2.2).sub(1.1).requires_grad_()
    loss, rewards = loss_fn(frames, prompts if single_frame else prompts[0])
    assert loss.repeat(2).mean().item() == pytest.approx(-0.1 * rewards.detach().item())
    loss.backward()
    assert frames.grad.norm() > 0


def write_mp4(path, clip):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width = clip.shape[2:]
        stream.pix_fmt = "yuv420p"
        for frame in clip:
            pixels = (frame * 255).byte().permute(1, 2, 0).contiguous().numpy()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return str(path)


def test_videoalign_as_dancegrpo_calls_it(videos, prompts, model, tmp_path, caplog):
    from dover_integrations.rewards.videoalign import VideoVLMRewardInference

    paths = [write_mp4(tmp_path / f"{i}.mp4", clip) for i, clip in enumerate(videos)]
    inferencer = VideoVLMRewardInference(None, device="cpu", dtype=torch.float32)
    raw = VideoScorer(model, device="cpu").score(paths, prompts).values
    with torch.no_grad():
        rewards = inferencer.reward(paths, prompts, use_norm=True)
        plain = inferencer.reward([paths[1]], [prompts[1]], use_norm=False)
    for reward, row in zip(rewards, raw.tolist(), strict=True):
        assert reward["VQ"] == pytest.approx((row[0] + row[2]) / 2 - 3, rel=1e-4)
        assert (reward["MQ"], reward["TA"]) == pytest.approx((row[3] - 3, row[1] - 3), rel=1e-4)
        assert reward["Overall"] == pytest.approx(reward["VQ"] + reward["MQ"] + reward["TA"])
    assert plain[0]["MQ"] == pytest.approx(rewards[1]["MQ"] + 3)
    assert not caplog.records
    inferencer.reward(paths[0], [prompts[0]], fps=8)
    assert "are not used" in caplog.text
    with pytest.raises(ValueError, match="got both"):
        inferencer.reward(paths, prompts, fps=8, num_frames=16)
    with pytest.raises(RewardError, match="no such file"):
        inferencer.reward([str(tmp_path / "missing.mp4")], [prompts[0]])


def test_cosmos_rl(monkeypatch, videos, prompts, expected):
    """The service registers on import, sets up once, and passes the decoded batch with its metadata."""
    registered = []

    class RewardRegistry:
        @staticmethod
        def register():
            return lambda cls: registered.append(cls) or cls

    install(
        monkeypatch,
        cosmos_rl_reward__handler__registry={"RewardRegistry": RewardRegistry},
        cosmos_rl_reward__handler__reward_base={"BaseRewardHandler": type("BaseRewardHandler", (), {})},
    )
    load_fresh(monkeypatch, "cosmos_rl")
    assert registered[0].NEEDS_LATENT_DECODER  # what the service asks before it loads a VAE
    with pytest.raises(ValueError, match="expected a dtype of float32, bfloat16, float16, got 'bf16'"):
        registered[0](dtype="bf16", device="cpu")
    handler = registered[0](model_path="", dtype="float16", device="cpu", download_path="")
    handler.set_up()
    assert handler.reward.scorer.dtype == torch.float16
    pixels = (videos * 255).round().permute(0, 2, 1, 3, 4)
    for images in (pixels, pixels.byte()):
        answer = handler.calculate_reward(images, {"prompts": np.array(prompts), "decode_duration": "0.10"})
        assert answer["type"] == "dover"
        assert answer["decoded_duration"] == "0.10"
        assert float(answer["duration"]) >= 0
        assert answer["scores"]["overall"] == pytest.approx(expected[:, 4].tolist(), abs=2e-2)
        assert set(answer["scores"]) == {name.lower() for name in SCORE_NAMES}
    failed = handler.calculate_reward(pixels, {})
    assert failed["scores"] is None
    assert "prompts" in failed["error"]

    def run_out(frames, prompts):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(handler.reward.scorer, "score_prepared", run_out)
    failed = handler.calculate_reward(pixels, {"prompts": prompts})
    assert failed["scores"] is None
    assert failed["error"] == "OutOfMemoryError: CUDA out of memory"


def test_trl(videos, prompts, expected):
    """Everything comes by keyword; the rewards are a list of floats, None where there is nothing to score."""
    from dover_integrations.rewards.trl import DoverVideoReward

    reward = pickle.loads(pickle.dumps(DoverVideoReward(device="cpu")))
    assert reward.__name__ == "dover_video_reward"
    frames = (videos * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    conversations = [[{"role": "system", "content": "Answer."}, {"role": "user", "content": text}] for text in prompts]
    logged = {}
    for given in (prompts, conversations):
        found = reward(
            prompts=given,
            completions=["..."] * 4,
            completion_ids=[[1]] * 4,
            video=[frames[0], None, frames[2], "no such file.mp4"],
            trainer_state=SimpleNamespace(global_step=3),
            log_extra=lambda column, values: None,
            log_metric=logged.__setitem__,
        )
        assert found[1] is None
        assert found[3] is None
        assert [found[0], found[2]] == pytest.approx(expected[[0, 2], 4].tolist(), abs=2e-2)
    assert logged["dover/Overall"] == pytest.approx(expected[[0, 2], 4].mean().item(), abs=2e-2)
    with pytest.raises(ValueError, match="expected the column 'video'"):
        reward(prompts=prompts, completions=[], clip=[])


def test_no_framework_is_imported_before_its_file_is():
    import subprocess

    code = (
        "import sys, dover_integrations.rewards.core, dover_integrations.rewards.flow_grpo;"
        "found = {'flow_grpo','genrl','verl','unirl','flow_factory','fastvideo','trl','cosmos_rl_reward','fastapi'};"
        "sys.exit(str(found & set(sys.modules)) if found & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
