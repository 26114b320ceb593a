"""Several views of a clip and several runs of frames, through one backbone."""

import pytest
import torch

from dover_eval import DOVERConfig, DOVERModel, DOVERModelSimple, VideoScorer
from dover_eval.config import EFFICIENTNET_LITE0
from dover_eval.models.sights import SIGHTS
from dover_eval.video.sample import prepare_clip, squash

PROMPTS = ["a red circle moving left", "two dogs running over a beach"]


@pytest.fixture(scope="module")
def config(small_config):
    return small_config.replace(views=("squash", "fragments"), windows=2)


@pytest.fixture(scope="module")
def simple(config):
    torch.manual_seed(0)
    return DOVERModelSimple(config).eval()


@pytest.fixture
def views():
    return torch.randn(2, 2, 3, 4, 32, 48)


@torch.no_grad()
def test_shapes_do_not_depend_on_views_and_windows(simple, views):
    output = simple(views, maps=True)
    assert output["features"].shape == (2, 1024)
    assert output["backbone_features"].shape == (2, 32, 4, 1, 1)
    assert output["aesthetic_map"].shape == output["technical_map"].shape == (2, 1, 4, 1, 1)


@torch.no_grad()
def test_the_whole_frame_is_for_aesthetics_and_fragments_for_technique(simple, views):
    before = simple(views)
    spoiled = views.clone()
    spoiled[:, 1] += torch.randn_like(spoiled[:, 1])
    after = simple(spoiled)
    assert torch.equal(before["aesthetic_score"], after["aesthetic_score"])
    assert not torch.allclose(before["technical_score"], after["technical_score"])
    assert not torch.allclose(before["features"], after["features"])


@torch.no_grad()
def test_one_view_stands_for_all(simple, views):
    alone = views[:, 0]
    torch.testing.assert_close(simple(alone)["features"], simple(alone[:, None].repeat(1, 2, 1, 1, 1, 1))["features"])


@torch.no_grad()
def test_runs_do_not_see_each_other(simple, views):
    """The second run may change as it likes: the maps of the first stay."""
    changed = views.clone()
    changed[:, :, :, 2:] = torch.randn(2, 2, 3, 2, 32, 48)
    before, after = simple(views)["backbone_features"], simple(changed)["backbone_features"]
    torch.testing.assert_close(before[:, :, :2], after[:, :, :2])
    assert not torch.allclose(before[:, :, 2:], after[:, :, 2:])


@torch.no_grad()
def test_frames_that_do_not_divide_are_one_run(simple):
    assert simple(torch.randn(1, 3, 5, 32, 48))["backbone_features"].shape == (1, 32, 5, 1, 1)


@torch.no_grad()
def test_pictures_are_for_the_semantic_encoder_alone(config):
    torch.manual_seed(0)
    closer = config.replace(
        views=("squash", "fragments", "pictures"), num_frames=8, semantic_encoder_name=EFFICIENTNET_LITE0
    )
    model = DOVERModel(None, config=closer).eval()
    clip = torch.randn(2, 3, 3, 8, 32, 48)
    spoiled = clip.clone()
    spoiled[:, 2] = torch.randn(2, 3, 8, 32, 48)
    assert torch.equal(model.dover_model(clip)["features"], model.dover_model(spoiled)["features"])
    before, after = model.semantics(clip), model.semantics(spoiled)
    assert not torch.allclose(before[:, :-SIGHTS], after[:, :-SIGHTS])
    assert torch.equal(before[:, -SIGHTS:], after[:, -SIGHTS:])
    assert model(clip[:, 0], PROMPTS).shape == (2, 5)  # whole frames alone stand for all views
    with pytest.raises(ValueError, match=r"4 x n frames in each of 2 runs.*got frames \(2, 3, 3, 6, 32, 48\)"):
        model(clip[:, :, :, :6], PROMPTS)


@torch.no_grad()
def test_the_semantic_encoder_sees_the_picture_in_the_middle_of_each_run(config):
    closer = config.replace(
        views=("squash", "fragments", "pictures"), num_frames=16, semantic_encoder_name=EFFICIENTNET_LITE0
    )
    model = DOVERModel(None, config=closer).eval()
    clip = torch.rand(16, 3, 90, 120)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (closer.mean, closer.std))
    middles = torch.stack([(squash(clip[i], (64, 96)) - mean) / std for i in (4, 12)])
    seen = model.semantics(prepare_clip(clip, closer)[None])
    torch.testing.assert_close(seen[0, :-SIGHTS], model.semantic_encoder(middles).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_another_number_of_views_is_refused(simple):
    with pytest.raises(ValueError, match=r"\(B,2,3,T,H,W\).*got \(1, 3, 3, 4, 32, 48\)"):
        simple(torch.randn(1, 3, 3, 4, 32, 48))


def test_a_file_and_its_frames_score_alike(config, write_video):
    import numpy as np

    torch.manual_seed(0)
    scorer = VideoScorer(DOVERModel(None, config=config), device="cpu")
    path = write_video(np.random.default_rng(0).integers(0, 256, (9, 64, 96, 3), dtype=np.uint8))
    from_file = scorer.score(path, PROMPTS[0])
    assert from_file.errors == (None,)
    from_frames = scorer.score(scorer.decode(path), PROMPTS[0], layout="TCHW")
    assert torch.equal(from_file.values, from_frames.values)
    assert scorer.fingerprint.views == ("squash", "fragments")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"views": ("fragments",)}, "expected views"),
        ({"views": ("squash", "pictures")}, "expected views"),
        (
            {"views": ("squash", "fragments", "pictures"), "num_frames": 12, "windows": 2},
            "num_frames 12 in 2 windows of groups of 4",
        ),
        ({"windows": 3}, "windows of equal length, got 3"),
        ({"frame_size": (16, 32)}, r"frame_size \(height, width\) of at least \(32, 32\), got \(16, 32\)"),
        ({"views": ("squash", "fragments", "pictures"), "windows": 0}, "windows of equal length, got 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate from 0 to below 1, got 1.0"),
        ({"views": ("squash", "fragments"), "frame_size": (34, 32)}, "divisible by the 4x4 fragments"),
    ],
)
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        DOVERConfig(**changes)
