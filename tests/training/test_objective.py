"""A batch of rated and compared clips, and what the model is taught by it."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dover_eval import DOVERModel
from dover_eval.config import EFFICIENTNET_LITE0
from dover_eval.evaluation import JudgedPair, RatedClip
from dover_eval.models.heads import StatisticsPool
from dover_eval.opinion import ASPECTS
from dover_eval.prompts import next_different
from dover_eval.training.batches import collate
from dover_eval.training.losses import bradley_terry_ties_loss, masked_smooth_l1
from dover_eval.training.objective import Objective
from dover_eval.training.settings import LossSettings

ONLY = {"plcc": 0.0, "rank": 0.0, "preference": 0.0, "contrast": 0.0, "heads": 0.0}


@pytest.fixture
def model(small_config):
    return DOVERModel(None, config=replace(small_config, drop_path_rate=0.0))


@pytest.fixture
def batch(small_config):
    """A rated clip, a compared pair, another rated clip."""
    clip = lambda: torch.randn(3, small_config.num_frames, *small_config.frame_size)
    rated = lambda prompt, **ratings: RatedClip("a", prompt, ratings)
    pair = JudgedPair("b", "c", "two birds", {"Overall": 1, "Temporal": 0}, {"Overall": 0.8})
    items = [(rated("a red car", Traditional=2.0, Overall=3.0), [clip()]), (pair, [clip(), clip()])]
    return collate([*items, (rated("a blue boat", Alignment=4.5), [clip()])])


def test_a_batch_puts_clips_side_by_side(batch):
    assert len(batch["frames"]) == 4
    assert batch["prompts"] == ["a red car", "two birds", "two birds", "a blue boat"]
    targets = batch["targets"]
    assert targets["ratings"][0, [0, 4]].tolist() == [2, 3]
    assert targets["ratings"][3, 1] == 4.5
    assert targets["ratings"].isnan().sum() == 20 - 3
    assert (targets["first"].tolist(), targets["second"].tolist()) == ([1], [2])
    assert targets["judged"].tolist() == [[False, False, False, True, True]]
    assert targets["preferences"][0, 4].tolist() == pytest.approx([0.8, 0.2, 0])


def test_losses_are_those_of_the_scores(model, batch):
    scores = model(batch["frames"], batch["prompts"])
    ratings = batch["targets"]["ratings"]
    found = Objective(model, LossSettings(**ONLY)).eval()(**batch)
    torch.testing.assert_close(found["loss"], masked_smooth_l1(scores, ratings, ~ratings.isnan(), 0.5))

    settings = LossSettings(**(ONLY | {"smooth_l1": 0.0, "preference": 2.0}))
    found = Objective(model, settings).eval()(**batch)
    odds = (scores[1] - scores[2])[[3, 4]] / 0.5
    want = bradley_terry_ties_loss(odds, torch.tensor([[0.0, 0, 1], [0.8, 0.2, 0]]))
    torch.testing.assert_close(found["loss"], 2 * want)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [("smooth_l1", "smooth_l1_beta", 2.0), ("preference", "tie_width", 1.5), ("contrast", "contrast_margin", 2.5)],
)
def test_a_loss_has_the_settings_it_is_given(model, batch, name, setting, value):
    weights = ONLY | {name: 1.0}
    usual, other = (
        Objective(model, LossSettings(**weights, **settings)).eval()(**batch)[name].item()
        for settings in ({}, {setting: value})
    )
    assert usual != pytest.approx(other, rel=1e-3)


def test_the_two_heads_learn_aesthetic_and_technical_quality_from_the_scores_and_teach_them_nothing(model, batch):
    settings = LossSettings(**(ONLY | {"heads": 1.0}), smooth_l1_beta=0.1)
    found = Objective(model, settings).eval()(**batch)["heads"]
    scores, video = model(batch["frames"], batch["prompts"]), model.dover_model(batch["frames"])
    heads = torch.cat([video["aesthetic_score"], video["technical_score"]], dim=1)
    wanted = scores[:, [ASPECTS.index("Aesthetic"), ASPECTS.index("Traditional")]] - 3
    torch.testing.assert_close(found, F.smooth_l1_loss(heads, wanted, beta=0.1))
    found.backward()
    assert all(p.grad is None for p in model.mos_predictor.parameters())


def test_another_prompt_is_read_to_its_own_end(model, batch, monkeypatch):
    batch["prompts"][-1] = "a blue boat in the rain, at night, beside a lighthouse"
    objective, read = Objective(model, LossSettings()).eval(), []
    scores = objective._scores
    monkeypatch.setattr(objective, "_scores", lambda *given: read.append(given[-1].mask.sum(dim=1)) or scores(*given))
    objective(**batch)
    own, other = read
    assert len(set(own.tolist())) > 1
    assert torch.equal(other, own[next_different(batch["prompts"])])


def test_all_losses_together_reach_every_parameter(model, batch):
    settings = LossSettings(scale=0.1)
    losses = Objective(model, settings).train()(**batch)
    assert set(losses) == {"loss", "smooth_l1", "plcc", "rank", "scale", "preference", "contrast", "heads"}
    losses["loss"].backward()
    lacking = [name for name, p in model.named_parameters() if p.grad is None]
    assert lacking == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_of_a_text_encoder_that_is_trained_all_that_learns_is_reached(small_config, batch):
    """A BERT has a pooler, which nothing here reads: DDP would wait for its gradient."""
    model = DOVERModel(None, config=small_config, train_text_encoder=True)
    Objective(model, LossSettings()).train()(**batch)["loss"].backward()
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert lacking == []
    assert all(p.grad is not None for p in model.text_encoder.model.encoder.parameters())


def test_without_pairs_or_ratings_every_parameter_still_takes_part(model, batch):
    """DDP waits for every parameter, in batches that lack a kind as well."""
    for rows in ([0], [1, 2]):
        targets = {"ratings": batch["targets"]["ratings"][rows]}
        pairs = torch.arange(len(rows) // 2)
        targets |= {"first": pairs, "second": pairs + 1}
        targets |= {name: batch["targets"][name][: len(pairs)] for name in ("preferences", "judged")}
        model.zero_grad()
        prompts = [batch["prompts"][i] for i in rows]
        loss = Objective(model, LossSettings()).train()(batch["frames"][rows], prompts, targets)["loss"]
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("rows", [[0, 3], [0]], ids=["two clips", "one clip"])
def test_the_statistics_follow_a_batch_once_also_where_it_is_asked_about_two_prompts(small_config, batch, rows):
    config = replace(small_config, drop_path_rate=0.0, semantic_encoder_name=EFFICIENTNET_LITE0)
    model = DOVERModel(None, config=config)
    model.fusion.semantics.fitted.fill_(1)  # as after a first batch
    nothing = {name: value[:0] for name, value in batch["targets"].items()}
    targets = nothing | {"ratings": batch["targets"]["ratings"][rows]}
    found = []
    for contrast in (0.0, 0.3):
        own = copy.deepcopy(model)
        objective = Objective(own, LossSettings(contrast=contrast)).train()
        objective(batch["frames"][rows], [batch["prompts"][row] for row in rows], targets)
        found.append(own.fusion.semantics.state_dict())
    (raw,) = model.eval().semantics(batch["frames"][rows]).mean(dim=0, keepdim=True)
    torch.testing.assert_close(found[0]["center"], raw * StatisticsPool.MOMENTUM)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_without_targets_it_scores(model, batch):
    objective = Objective(model, LossSettings()).eval()
    found = objective(batch["frames"], batch["prompts"])
    assert torch.equal(found["scores"], model(batch["frames"], batch["prompts"]))


def test_checkpointing_gives_the_same_gradients(model, batch):
    def gradients():
        model.zero_grad()
        Objective(model, LossSettings()).eval()(**batch)["loss"].backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert model.dover_model.backbone.checkpoint_frames == model.config.num_frames
    for one, other in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    for frames in (0, -1, 2.5, "all"):
        with pytest.raises(ValueError, match=f"1 or more, got {frames!r}"):
            model.gradient_checkpointing_enable({"frames": frames})
    model.gradient_checkpointing_disable()
    assert model.dover_model.backbone.checkpoint_frames is None


def test_the_contrast_teaches_that_the_prompt_matters(model, batch):
    """A few steps on one batch: every clip's own prompt comes to fit it better than its neighbour's."""
    settings = LossSettings(**(ONLY | {"smooth_l1": 0.01, "contrast": 1.0}))
    objective = Objective(model, settings).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    others = next_different(batch["prompts"])

    def advantage():
        with torch.no_grad():
            own = model(batch["frames"], batch["prompts"])[:, 1]
            other = model(batch["frames"], [batch["prompts"][i] for i in others])[:, 1]
        return (own - other).min().item()

    before = advantage()
    for _ in range(40):
        optimizer.zero_grad()
        objective(**batch)["loss"].backward()
        optimizer.step()
    assert before < 0.2
    assert advantage() > 0.5


def test_another_prompt_is_one_that_differs():
    assert next_different(["a", "a", "b"]) == [2, 2, 0]
    assert next_different(["a", "b", "c"]) == [1, 2, 0]
    assert next_different(["a", "b", "b", "a"]) == [1, 3, 3, 1]
    assert next_different(["a", "a"]) == [None, None]
    assert next_different(["a"]) == [None]
