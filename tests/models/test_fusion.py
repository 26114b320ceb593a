"""Fusion: shapes of the specification, weights that sum to one, masks that hide, attention that attends."""

import pytest
import torch

from dover_eval import QualityAwareFusion
from dover_eval.models.fusion import PRIOR_GAIN


@pytest.fixture
def fusion():
    module = QualityAwareFusion(dover_dim=24, text_dim=16, hidden_dim=32).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def test_the_specification_defaults():
    fused, weights = QualityAwareFusion()(torch.randn(2, 1024), torch.randn(2, 1024))
    assert fused.shape == (2, 256)
    assert weights.shape == (2, 4)


def test_weights_sum_to_one(fusion):
    _, weights = fusion(torch.randn(3, 24), 100 * torch.randn(3, 16))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights >= 0).all()


def test_the_first_half_of_the_features_is_the_videos_alone(fusion):
    video = torch.randn(2, 5, 24)
    (one, _), (other, _) = (fusion(video, torch.randn(2, 3, 16)) for _ in range(2))
    assert torch.equal(one[:, :8], other[:, :8])
    assert (one[:, 8:] != other[:, 8:]).any(dim=1).all()


def test_a_prior_adds_the_similarity_of_what_is_seen_and_said():
    """Two classes whose names are the first two directions of the prompts' space."""
    fusion = QualityAwareFusion(dover_dim=24, text_dim=16, hidden_dim=32, semantic_dim=2).eval()
    video, text, pooled = torch.randn(1, 24), torch.randn(1, 16), torch.eye(16)[:1]
    with torch.no_grad():
        fusion.semantic_proj.weight.zero_()
        fusion.semantic_proj.bias.zero_()
        fusion.agreement.weight.zero_()
        fusion.agreement.weight[0, 1] = 1  # the first feature reads the prior alone
        read = lambda seen: fusion(video, text, text_pooled=pooled, semantics=torch.tensor([seen]))[0][0, 8]
        assert read([0.9, 0.1]) == read([0.1, 0.9])  # fresh: none
        fusion.prior[:2] = torch.eye(2)
        fits, does_not = read([1.0, 0.0]), read([0.0, 1.0])
    assert (fits - does_not).item() == pytest.approx(PRIOR_GAIN, abs=1e-4)


def test_a_concept_counts_where_it_is_shown_and_named():
    """The first concept is the first direction of pictures and the second of prompts."""
    fusion = QualityAwareFusion(dover_dim=24, text_dim=16, hidden_dim=32, semantic_dim=2).eval()
    video, text = torch.randn(1, 24), torch.randn(1, 16)
    with torch.no_grad():
        fusion.concepts_shown.weight.zero_()[0, 0] = 1
        fusion.concepts_named.weight.zero_()[0, 1] = 1
        fusion.agreement.weight.zero_()[0, 2] = 1  # the first feature reads the concepts alone
        read = lambda seen, said: fusion(
            video, text, text_pooled=torch.eye(16)[said][None], semantics=torch.tensor([seen])
        )[0][0, 8].item()
        nothing = read([0.0, 1.0], 1)
        assert read([2.0, 1.0], 1) - nothing == pytest.approx(2)
        assert read([2.0, 1.0], 0) == pytest.approx(nothing)


def test_padding_is_not_seen(fusion):
    video, text = torch.randn(1, 5, 24), torch.randn(1, 7, 16)
    alone = fusion(video, text)
    video_mask, text_mask = torch.arange(9)[None] < 5, torch.arange(12)[None] < 7
    padded = fusion(
        torch.cat([video, 1e3 * torch.randn(1, 4, 24)], 1),
        torch.cat([text, 1e3 * torch.randn(1, 5, 16)], 1),
        dover_mask=video_mask,
        text_mask=text_mask,
    )
    for a, b in zip(alone, padded, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_word_finds_its_place_among_others(fusion):
    """The places are a set: their order is nothing, their content is everything."""
    video, text = torch.randn(1, 6, 24), torch.randn(1, 3, 16)
    pooled = video.mean(1)
    fused, _ = fusion(video, text, dover_pooled=pooled)
    shuffled, _ = fusion(video[:, [3, 1, 5, 0, 2, 4]], text, dover_pooled=pooled)
    torch.testing.assert_close(fused, shuffled, atol=1e-5, rtol=1e-5)
    other, _ = fusion(torch.randn(1, 6, 24), text, dover_pooled=pooled)
    assert (fused - other).abs().max() > 0.01


@pytest.mark.parametrize(
    ("video", "text", "words"),
    [((2, 24), (3, 16), "2 and 3"), ((2, 1, 1, 24), (2, 16), r"dover_features \(B,D\) or \(B,N,D\)")],
)
def test_what_does_not_fit_is_refused(fusion, video, text, words):
    with pytest.raises(ValueError, match=words):
        fusion(torch.zeros(video), torch.zeros(text))


def test_semantics_go_with_a_fusion_that_was_made_for_them_alone(fusion):
    video, text, seen = torch.zeros(2, 24), torch.zeros(2, 16), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="expected no semantics"):
        fusion(video, text, semantics=seen)
    with pytest.raises(ValueError, match="expected semantics"):
        QualityAwareFusion(24, 16, 16, semantic_dim=3)(video, text)


def test_a_mask_of_another_shape_is_refused(fusion):
    with pytest.raises(ValueError, match=r"expected a mask \(2, 5\)"):
        fusion(torch.zeros(2, 5, 24), torch.zeros(2, 16), dover_mask=torch.ones(2, 4, dtype=torch.bool))


def test_hidden_sizes_must_fit_the_heads():
    with pytest.raises(ValueError, match="divisible by 8"):
        QualityAwareFusion(8, 8, 20)


def test_attention_is_what_the_fusion_attends_with(fusion):
    """The weights, times the values, are what each word finds."""
    video, text = torch.randn(2, 5, 24), torch.randn(2, 3, 16)
    weights = fusion.attention(video, text)
    assert weights.shape == (2, 8, 3, 5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 8, 3))
    places = fusion.video_norm(fusion.dover_proj(video))
    values = fusion.key_value(places).chunk(2, dim=-1)[1].unflatten(-1, (8, -1)).transpose(1, 2)
    found = fusion.attended((weights @ values).transpose(1, 2).flatten(2))
    words = fusion.text_norm(fusion.text_proj(text))
    torch.testing.assert_close(found, fusion._attend(words, places, torch.ones(2, 5, dtype=torch.bool)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("semantic_dim", [None, 3])
def test_a_prompt_without_words_has_a_score(dtype, semantic_dim):
    fusion = QualityAwareFusion(24, 16, 32, semantic_dim).eval().to(dtype)
    none = torch.zeros(1, 3, dtype=torch.bool)
    seen = None if semantic_dim is None else torch.randn(1, semantic_dim)
    video, text = torch.randn(1, 5, 24).to(dtype), torch.randn(1, 3, 16).to(dtype)
    fused, weights = fusion(video, text, text_mask=none, semantics=seen)
    assert fused.isfinite().all()
    assert weights.isfinite().all()
