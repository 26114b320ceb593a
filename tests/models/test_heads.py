"""Scores are bounded, Overall is between the others, and statistics ignore the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dover_eval import MOSPredictor
from dover_eval.models.heads import StatisticsPool


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0, 1e4), sharpness=st.floats(0, 100))
def test_scores_are_in_range_and_overall_is_between_the_others(seed, scale, sharpness):
    torch.manual_seed(seed)
    weights = (torch.randn(5, 4) * sharpness).softmax(1)
    scores = MOSPredictor(16, 8)(torch.randn(5, 16) * scale, weights)
    assert scores.shape == (5, 5)
    assert (scores >= 1).all()
    assert (scores <= 5).all()
    assert (scores[:, 4] >= scores[:, :4].amin(1)).all()
    assert (scores[:, 4] <= scores[:, :4].amax(1)).all()


def test_overall_follows_the_weights():
    head, fused = MOSPredictor(16, 8), torch.randn(4, 16)
    for aspect in range(4):
        weights = torch.zeros(4, 4)
        weights[:, aspect] = 1
        scores = head(fused, weights)
        torch.testing.assert_close(scores[:, 4], scores[:, aspect])
    torch.testing.assert_close(head(fused)[:, 4], head(fused)[:, :4].mean(1))


def test_statistics_standardise_what_they_saw_and_do_not_depend_on_the_batch():
    pool = StatisticsPool(6 * (3 + 5)).train()
    maps = [torch.randn(16, 3, 4, 6, 6) * 3 + 1, torch.randn(16, 5, 4, 3, 3)]
    pool(pool.raw(maps))
    seen = pool.eval()(pool.raw(maps))
    assert seen.shape == (16, 48)
    assert seen.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(pool(pool.raw([m[3:4] for m in maps])), seen[3:4])


def test_statistics_learn_from_one_clip_at_a_time():
    torch.manual_seed(0)
    pool, clips = StatisticsPool(2).train(), torch.randn(400, 2) * torch.tensor([3.0, 0.2]) + 5
    seen = torch.cat([pool(clip[None]) for clip in clips])
    assert (seen[1:] != 0).all()  # the first one is its own centre
    torch.testing.assert_close(pool.center, torch.full((2,), 5.0), atol=1.0, rtol=0)
    torch.testing.assert_close(pool.scale, torch.tensor([3.0, 0.2]), rtol=0.3, atol=0)


def test_two_batches_may_be_seen_before_the_gradients_of_either_are_asked_for():
    """As in a loss of pairs."""
    pool = StatisticsPool(2).train()
    first, second = (torch.randn(3, 2, requires_grad=True) for _ in range(2))
    (pool(first) - pool(second)).sum().backward()
    torch.testing.assert_close(first.grad.abs().min(0).values, second.grad.abs().min(0).values, rtol=0.5, atol=0)


def test_statistics_are_not_fitted_to_one_clip():
    with pytest.raises(ValueError, match=r"two clips or more, got \(1, 2\)"):
        StatisticsPool(2).fit(torch.randn(1, 2))


def test_statistics_of_one_frame_are_finite_and_say_that_nothing_moves():
    pool = StatisticsPool(6 * 3).train()
    raw = pool.raw([torch.randn(1, 3, 1, 4, 4)])
    assert pool(raw).isfinite().all()
    still = pool.raw([torch.randn(1, 3, 1, 4, 4).expand(-1, -1, 4, -1, -1)])
    assert torch.equal(raw[:, 9:], still[:, 9:])  # differences in time of three channels


def test_moments_that_are_alike_in_all_clips_divide_by_no_zero():
    pool = StatisticsPool(1).eval()
    pool.fit(torch.full((3, 1), 2.0))
    assert pool.standardise(torch.tensor([[2.05]])).item() == pytest.approx(5, abs=1e-3)


def test_the_first_single_clip_tells_nothing_of_the_scale():
    pool = StatisticsPool(2).train()
    pool.follow(torch.tensor([[1000.0, -1000.0]]))
    assert pool.center.tolist() == [1000, -1000]
    assert pool.scale.tolist() == [1, 1]


def test_scores_are_finer_than_the_half_precision_of_the_features():
    head, fused = MOSPredictor(16, 8), torch.randn(64, 16)
    with torch.autocast("cpu", torch.bfloat16):
        logits, scores = head.aspect_logits(fused), head(fused)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(scores[:, :4], 1 + 4 * logits.float().sigmoid())


def test_the_prompts_half_of_the_features_moves_alignment_alone() -> None:
    head, fused = MOSPredictor(16, 8), torch.randn(4, 16)
    other = torch.cat([fused[:, :8], torch.randn(4, 8)], dim=1)
    before, after = head(fused), head(other)
    assert torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert (before[:, 1] != after[:, 1]).all()


def test_features_that_have_no_halves_are_refused() -> None:
    with pytest.raises(ValueError, match=r"even input_dim.*got 15"):
        MOSPredictor(15, 8)
