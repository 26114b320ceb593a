"""`DoverReward.differentiable`: gradients to the pixels, and what they cost."""

import pytest
import torch
from dover_integrations.rewards import DoverReward, RewardError

from dover_eval import DOVERModel


def test_it_gives_the_rewards_of_a_plain_call_and_a_gradient_at_every_clip(reward, videos, prompts):
    frames = videos.clone().requires_grad_()
    rewards = reward.differentiable(frames, prompts)
    torch.testing.assert_close(rewards.detach(), reward(videos, prompts))
    rewards.sum().backward()
    assert (frames.grad.flatten(1).norm(dim=1) > 1e-6).all()
    with torch.autocast("cpu", torch.bfloat16):  # the trainer's, which is none of the reward's
        assert torch.equal(reward.differentiable(frames, prompts), rewards)


@pytest.mark.parametrize("slice_frames", [1, 3, 4, 100])
def test_checkpointing_in_slices_changes_neither_reward_nor_gradient(reward, videos, prompts, slice_frames):
    def run(checkpoint_frames):
        frames = videos.clone().requires_grad_()
        rewards = reward.differentiable(frames, prompts, checkpoint_frames=checkpoint_frames)
        rewards.sum().backward()
        return rewards.detach(), frames.grad

    for found, expected in zip(run(slice_frames), run(None), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_gradient_is_the_numeric_one_on_nano():
    """Central differences along the gradient and along smooth random directions; short, for clips of noise bend it."""
    torch.manual_seed(0)
    model = DOVERModel(None, config="nano")
    reward = DoverReward(model, layout="BCTHW", value_range=(-1, 1), device="cpu")
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, 16, 64, 64, generator=generator) * 1.2 - 0.6
    frames = clip.clone().requires_grad_()
    reward.differentiable(frames, ["a boat"]).sum().backward()
    gradient = frames.grad / frames.grad.norm()

    def slope(direction, step):
        ends = torch.cat([clip + step * direction, clip - step * direction])
        up, down = reward.scores(ends, "a boat").double()[:, 4]
        return ((up - down) / (2 * step)).item()

    along = frames.grad.norm().item()
    assert slope(gradient, 0.03) == pytest.approx(along, rel=0.02)
    mixed = torch.nn.functional.avg_pool3d(torch.randn(clip.shape, generator=generator), 3, 1, 1)
    mixed = gradient + mixed / mixed.norm()
    assert slope(mixed, 0.03) == pytest.approx((frames.grad * mixed).sum().item(), rel=0.03)


def test_a_step_along_the_gradient_raises_the_reward(reward, videos, prompts):
    frames = videos.clone().requires_grad_()
    before = reward.differentiable(frames, prompts)
    before.sum().backward()
    step = frames.grad / frames.grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1, 1)
    after = reward((videos + 0.1 * step).clamp(0, 1), prompts)
    assert (after > before.detach()).all()


def test_the_models_own_weights_get_no_gradient(reward, videos, prompts):
    reward.differentiable(videos.clone().requires_grad_(), prompts).sum().backward()
    assert all(parameter.grad is None for parameter in reward.scorer.model.parameters())


def test_checkpointing_ends_with_its_call_for_all_that_share_the_model(reward, videos, prompts):
    backbone = reward.scorer.model.dover_model.backbone
    reward.differentiable(videos, prompts, checkpoint_frames=2)
    assert backbone.checkpoint_frames is None
    with pytest.raises(RewardError, match="no such file"):
        reward.differentiable(["nowhere.mp4"], "a boat", checkpoint_frames=2)
    assert backbone.checkpoint_frames is None


def test_checkpointing_keeps_fewer_activations(model, videos, prompts):
    deep = DOVERModel(None, config=model.config.replace(depths=(8, 8, 8, 8)))
    reward = DoverReward(deep, layout="BTCHW", value_range=(0, 1), device="cpu")

    def kept(checkpoint_frames):
        storages = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage  # kept, so that no other takes its address
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            reward.differentiable(videos.clone().requires_grad_(), prompts, checkpoint_frames=checkpoint_frames)
        return sum(storage.nbytes() for storage in storages.values())

    assert kept(2) < 0.6 * kept(None)


def test_frames_with_nan_are_refused_whatever_the_policy(model, videos, prompts):
    reward = DoverReward(model, layout="BTCHW", value_range=(0, 1), device="cpu", nan_policy="nan")
    with pytest.raises(RewardError, match=r"videos\[0\]: frames .* hold NaN"):
        reward.differentiable(videos * torch.nan, prompts)


def test_a_slice_of_no_frames_is_refused(reward, videos, prompts):
    with pytest.raises(ValueError, match="checkpoint_frames of at least 1"):
        reward.differentiable(videos, prompts, checkpoint_frames=0)


def test_no_clips_are_no_rewards_and_a_missing_file_is_named(reward, videos):
    assert reward.differentiable(videos[:0], []).shape == (0,)
    with pytest.raises(RewardError, match=r"videos\[0\]: .*nowhere\.mp4: no such file"):
        reward.differentiable(["nowhere.mp4"], "a boat")
