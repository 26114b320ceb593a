"""Advantages from scores."""

import pytest
import torch
from dover_integrations.rewards import RunningNorm, aspect_advantages, clip_advantages, group_advantages
from dover_integrations.rewards.shaping import within_group_std


def test_each_group_has_mean_zero_and_standard_deviation_one():
    rewards = torch.tensor([1.0, 10.0, 3.0, 20.0, 5.0, 60.0])
    found = group_advantages(rewards, ["a", "b", "a", "b", "a", "b"])
    for group in (found[::2], found[1::2]):
        assert group.mean().item() == pytest.approx(0, abs=1e-6)
        assert group.std(correction=0).item() == pytest.approx(1)


def test_groups_may_be_a_tensor_of_ids_in_any_order():
    rewards, ids = torch.randn(6), torch.tensor([70, -1, 70, -1, 70, -1])
    assert torch.equal(group_advantages(rewards, ids), group_advantages(rewards, list("ababab")))


def test_groups_in_a_list_of_tensors_are_told_apart_by_value():
    rewards, ids = torch.randn(6), torch.tensor([70, -1, 70, -1, 70, -1])
    expected = group_advantages(rewards, ids)
    assert torch.equal(group_advantages(rewards, list(ids)), expected)
    assert torch.equal(group_advantages(rewards, list(ids[:, None])), expected)
    with pytest.raises(ValueError, match=r"expected a group a sample, got a tensor of shape \(2,\) for one"):
        group_advantages(rewards[:3], list(ids.view(3, 2)))


def test_a_group_without_a_difference_says_nothing():
    found = group_advantages(torch.tensor([2.0, 2.0, 2.0, 4.0, 3.3]), list("aabbc"))
    assert found.tolist() == pytest.approx([0, 0, -1, 1, 0])


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize(("reward", "count"), [(3.1, 64), (31.7, 6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_equal_rewards_leave_no_rounding_to_learn_from(reward, count, dtype, scale):
    rewards = torch.full((count,), reward, dtype=dtype)
    assert not group_advantages(rewards, ["a"] * count, scale=scale).any()
    scores = rewards[:, None].repeat(1, 5)
    assert not aspect_advantages(scores, ["a"] * count, {"Overall": 1}, scale=scale).any()


def test_without_scale_only_the_mean_goes():
    assert group_advantages(torch.tensor([1.0, 5.0]), list("aa"), scale=False).tolist() == [-2, 2]


def test_a_failed_item_stays_nan_and_moves_no_one_else():
    with_nan = group_advantages(torch.tensor([1.0, torch.nan, 3.0]), list("aaa"))
    assert with_nan.tolist() == pytest.approx([-1, torch.nan, 1], nan_ok=True)


def test_aspects_are_normalised_before_they_are_weighted():
    """Temporal varies a hundred times as much as Alignment, and still counts no more."""
    scores = torch.zeros(4, 5)
    scores[:, 1] = torch.tensor([3.00, 3.01, 3.02, 3.03])
    scores[:, 3] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    found = aspect_advantages(scores, list("aaaa"), {"Alignment": 1, "Temporal": 1})
    torch.testing.assert_close(found, torch.zeros(4), atol=1e-3, rtol=0)
    assert aspect_advantages(scores, list("aaaa"), {"Alignment": 1}).argmax() == 3


def test_unknown_aspects_and_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match="weights of"):
        aspect_advantages(torch.zeros(4, 5), list("aaaa"), {"Beauty": 1})
    with pytest.raises(ValueError, match=r"scores \(B,5\)"):
        aspect_advantages(torch.zeros(4, 4), list("aaaa"), {"Overall": 1})
    with pytest.raises(ValueError, match="a group for each of 3"):
        group_advantages(torch.zeros(3), list("aa"))


def test_clipping_holds_outliers_down():
    assert clip_advantages(torch.tensor([-9.0, 1.0, 9.0]), 2).tolist() == [-2, 1, 2]
    with pytest.raises(ValueError, match="above 0"):
        clip_advantages(torch.zeros(1), 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_running_figures_are_those_of_all_rewards_and_survive_a_checkpoint(dtype):
    rewards = (torch.randn(1000, dtype=torch.float64) * 0.01 + 1000).to(dtype)
    norm = RunningNorm()
    for part in rewards[:600].split(37):
        norm.update(part)
    restored = RunningNorm()
    restored.load_state_dict(norm.state_dict())
    for part in rewards[600:].split(7):
        restored.update(part)
    rewards = rewards.double()
    assert restored.mean == pytest.approx(rewards.mean().item(), rel=1e-12)
    assert restored.std == pytest.approx(rewards.std(correction=0).item(), rel=1e-6)
    assert restored(rewards).std(correction=0).item() == pytest.approx(1, rel=1e-6)


def test_running_figures_leave_out_nan():
    norm = RunningNorm()
    norm.update(torch.tensor([1.0, torch.nan, 3.0]))
    norm.update(torch.tensor([torch.nan]))
    assert (norm.count, norm.mean, norm.std) == (2, 2, 1)


def test_the_spread_within_groups_ignores_that_between_them_and_groups_of_one():
    assert within_group_std(torch.tensor([0.0, 2.0, 100.0, 102.0, 7.0]), list("aabbc")) == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rewards_of_any_precision_have_exact_statistics(dtype):
    rewards = (3 + 0.05 * torch.randn(600, generator=torch.Generator().manual_seed(0))).to(dtype)
    found = group_advantages(rewards, ["a"] * 600)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.mean().abs() < 1e-4
    assert found.std(correction=0) == pytest.approx(1, abs=1e-3)


def test_whole_numbers_are_rewards_too():
    assert group_advantages(torch.tensor([0, 1, 1, 0]), list("aabb")).tolist() == [-1, 1, 1, -1]


def test_one_text_is_no_group_a_sample():
    with pytest.raises(ValueError, match="expected a group a sample, got one text"):
        group_advantages(torch.zeros(5), "a cat")
    with pytest.raises(ValueError, match="expected a group for each of 3 rewards, got 2"):
        within_group_std(torch.zeros(3), list("ab"))
