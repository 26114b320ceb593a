"""The recipe of the embedded default: true examples, training that repeats and that teaches, figures and a card."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from scipy.stats import spearmanr

from dover_eval import DOVERModel, VideoScorer
from dover_eval.config import EFFICIENTNET_LITE0
from dover_eval.distortions import ASPECT_OF, distort
from dover_eval.training import synthetic
from dover_eval.video.sample import prepare_clip
from examples.train_default import measure as measuring
from examples.train_default import pictures, scenes
from examples.train_default.__main__ import store_in_half
from examples.train_default.card import write_card
from examples.train_default.contents import make_content, matches, near_miss
from examples.train_default.features import Seen, look, make
from examples.train_default.pictures import Place, Thing
from examples.train_default.readouts import fit_readouts, fit_semantics, within
from examples.train_default.settings import TrainingSettings
from examples.train_default.spoil import SPOILED, Camera, badness, spoil
from examples.train_default.train import learn_prompts, learn_quality, losses_of, start_from, train, video_of

pytest.importorskip("pytorch_msssim")


@pytest.fixture(scope="module")
def config(small_config):
    return small_config.replace(windows=2, views=("squash", "fragments"))


@pytest.fixture(autouse=True)
def some_pictures(tmp_path, monkeypatch):
    """Two places and two things for training, and as many that are held out; those of the recipe need packages."""
    found = {}
    for held_out in (False, True):
        found_places, found_things = [], []
        for i, (word, colour) in enumerate([("sea", (30, 90, 200)), ("field", (60, 160, 40))]):
            rng = np.random.default_rng([i, held_out])
            path = tmp_path / f"{word}{held_out}.png"
            noise = rng.integers(-25, 25, (60, 80, 3)).repeat(4, 0).repeat(4, 1)
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(path)
            found_places.append(Place(path, (f"a {word}", f"the {word}"), held_out))
        for name in ("ball", "box"):
            picture = Image.new("RGBA", (64, 64))
            shape = ImageDraw.Draw(picture)
            (shape.ellipse if name == "ball" else shape.rectangle)((8, 8, 56, 56), fill=(200, 120, 40, 255))
            path = tmp_path / f"{name}{held_out}.png"
            picture.save(path)
            found_things.append(Thing(name, str(path), held_out, is_photograph=name == "box"))
        found[held_out] = (tuple(found_places), tuple(found_things))
    monkeypatch.setattr(scenes, "_places", lambda held_out: found[held_out][0])
    monkeypatch.setattr(scenes, "_things", lambda held_out: found[held_out][1])


@pytest.fixture
def one_thread():
    """With more, a sum may be split in another place each run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def a_scene(**changes):
    place, thing = scenes._places(False)[0], scenes._things(False)[0]
    return replace(scenes.Scene(place, thing, "red", "left", "one"), **changes)


def where_red(frame):
    """The centre of what is red, (y, x)."""
    frame = frame.astype(int)
    red = (frame[..., 0] > 120) & (frame[..., 0] > frame[..., 1] + 60) & (frame[..., 0] > frame[..., 2] + 60)
    return np.argwhere(red).mean(0), red.sum()


@pytest.mark.parametrize(
    ("motion", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1), ("still", 0, 0)]
)
def test_things_move_as_their_caption_says(motion, axis, sign):
    frames = scenes.render(a_scene(motion=motion), np.random.default_rng(3), runs=1, length=8)
    moved = where_red(frames[-1])[0] - where_red(frames[0])[0]
    if sign == 0:
        assert np.abs(moved).max() < 2
    else:
        assert sign * moved[axis] > 5
        assert abs(moved[1 - axis]) < 3


def test_things_grow_and_come_in_the_number_that_is_said():
    grown = scenes.render(a_scene(motion="growing"), np.random.default_rng(1), runs=1, length=8)
    assert where_red(grown[-1])[1] > 1.3 * where_red(grown[0])[1]
    captions = {scenes.caption(a_scene(number="three"), np.random.default_rng(i)) for i in range(20)}
    assert all("three red balls" in text for text in captions)
    assert len(captions) > 5


def test_a_near_miss_differs_in_one_thing():
    scene = a_scene()
    for attribute in measuring.NEAR:
        other = scenes.near_miss(scene, np.random.default_rng(0), attribute)
        assert 0.5 < scene.matches(other) < 1
        assert getattr(other, attribute) != getattr(scene, attribute)
    assert scene.matches(scene) == 1
    drawn = synthetic.random_scene(np.random.default_rng(0))
    assert matches(scene, drawn) == matches(drawn, scene) == 0
    for seed in range(20):
        assert matches(drawn, near_miss(drawn, np.random.default_rng(seed))) == 0.8
    assert matches(drawn, drawn) == 1


def test_spoiling_says_what_it_did():
    clip = scenes.render(a_scene(), np.random.default_rng(0))
    seen = set()
    for seed in range(25):
        frames, strengths, bad = spoil(clip, Camera(), True, np.random.default_rng(seed))
        assert frames.dtype == np.uint8
        seen |= {name for name, strength in strengths.items() if strength}
        for aspect in SPOILED:
            strongest = max(strengths[name] for name in ASPECT_OF if ASPECT_OF[name] == aspect)
            assert 0 <= bad[aspect] <= 1
            assert (bad[aspect] > 0.02) >= (strongest > 0.05)
    assert len(seen) > 8


def test_badness_is_what_ms_ssim_says():
    clip = scenes.render(a_scene(), np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rising = [badness(clip, distort(clip, "blur", strength, rng)) for strength in (0.0, 0.2, 0.5, 1.0)]
    assert rising[0] == 0
    assert rising == sorted(rising)
    assert rising[-1] > 0.2


def test_contents_are_the_same_every_time(config):
    first, again, other = (make_content(config, i, seed=5) for i in (3, 3, 2))
    assert first.frames.shape == (3, 2, 3, 4, 32, 48)
    assert torch.equal(first.frames, again.frames)
    assert not torch.equal(first.frames, other.frames)


@pytest.fixture(scope="module")
def made(config):
    """Eight drawn contents, as a model that knows nothing sees them."""
    torch.manual_seed(0)
    model = DOVERModel(None, config=config).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("examples.train_default.contents.DRAWN", 1.0)
        return model, [look(model, make_content(config, i, seed=1)) for i in range(8)]


def test_what_was_kept_stands_for_the_frames(made, config, monkeypatch):
    """Features and tokens from the files are those of the model on the clips."""
    monkeypatch.setattr("examples.train_default.contents.DRAWN", 1.0)
    model, seen = made
    with torch.no_grad():
        whole = model.dover_model(make_content(config, 2, seed=1).frames)
        kept = video_of(model, seen[2:3])
    torch.testing.assert_close(kept["features"], whole["features"], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(kept["tokens"], whole["tokens"], rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_attributes_are_read_in_pictures_and_in_captions(config):
    """Of drawn scenes that were learned: what a caption names is what is shown, and another colour or motion is not."""
    model = DOVERModel(
        None, config=config.replace(num_frames=8, frame_size=(64, 64), semantic_encoder_name=EFFICIENTNET_LITE0)
    ).eval()
    rng = np.random.default_rng(0)
    shown = [synthetic.random_scene(rng) for _ in range(40)]
    clips = [synthetic.draw(scene, rng, num_frames=8, size=64) for scene in shown]
    frames = [prepare_clip(torch.from_numpy(clip).permute(0, 3, 1, 2), model.config) for clip in clips]
    none = torch.zeros(1, 1)
    seen = [Seen(s, none, none, none, model.semantics(f[None]), none, none) for s, f in zip(shown, frames, strict=True)]
    fit_semantics(model, seen, settings_of(1))
    fusion = model.fusion
    told = fusion.concepts_shown(fusion.semantics.standardise(torch.cat([s.semantics for s in seen])))

    def agreement(scenes_named):
        texts = [synthetic.caption(scene, np.random.default_rng(i)) for i, scene in enumerate(scenes_named)]
        pooled = torch.nn.functional.normalize(model.text_encoder(texts).pooled, dim=-1)
        return (told * fusion.concepts_named(pooled - fusion.usual_text)).sum(dim=1)

    right = agreement(shown)
    for attribute, values in (("colour", synthetic.COLOURS), ("motion", synthetic.MOTIONS)):
        others = [[value for value in values if value != getattr(scene, attribute)] for scene in shown]
        wrong = [replace(s, **{attribute: str(rng.choice(o))}) for s, o in zip(shown, others, strict=True)]
        assert (right > agreement(wrong)).float().mean() > 0.8, attribute


def settings_of(steps, **changes):
    return TrainingSettings(
        **{"quality_steps": 20, "quality_batch": 4, "components": 4} | changes, steps=steps, batch=4, held_back=0.2
    )


@pytest.mark.usefixtures("one_thread")
def test_training_learns_both_lessons_and_leaves_the_backbone(made, monkeypatch):
    monkeypatch.setattr("examples.train_default.contents.DRAWN", 1.0)
    model, seen = copy.deepcopy(made[0]), made[1]
    told = lambda: sum(losses_of(model, seen, np.random.default_rng(0), 0.0).values()).item()
    before, backbone = told(), copy.deepcopy(model.dover_model.backbone.state_dict())
    train(model, seen, settings_of(60, quality_steps=200, quality_noise=0.2, ema_decay=0.8, learning_rate=3e-3))
    assert told() < 0.85 * before
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    for name, value in model.dover_model.backbone.state_dict().items():
        assert torch.equal(value, backbone[name]), name
    learned = seen[: len(seen) - 2]  # two only watch, whichever they are
    wanted = torch.cat([s.bad for s in learned])
    frames = torch.cat([make_content(model.config, i, seed=1).frames for i in range(len(learned))])
    scores = model(frames, ["a video"] * len(frames)).detach()[:, [0, 2, 3]]
    better, worse = within(scores, 3), within(wanted, 3)  # of the versions of a scene
    for aspect in range(3):
        assert spearmanr(better[:, aspect], -worse[:, aspect]).statistic > 0.5


def test_the_lesson_on_prompts_leaves_the_scores_of_quality(made):
    model, seen = copy.deepcopy(made[0]), made[1]
    settings = settings_of(5, learning_rate=1e-2)
    fit_readouts(model, seen, settings)
    learn_quality(model, seen, seen[:2], settings)
    frames = torch.randn(3, 2, 3, 4, 32, 48)

    def quality():
        with torch.no_grad():
            return model.eval()(frames, ["a video"] * 3)[:, [0, 2, 3]]

    before = quality()
    learn_prompts(model, seen, seen[:2], np.random.default_rng(0), settings)
    torch.testing.assert_close(quality(), before)


@pytest.mark.usefixtures("one_thread")
def test_the_same_seed_gives_the_same_weights(made):
    first, second = (train(copy.deepcopy(made[0]), made[1], settings_of(3)) for _ in range(2))
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.slow
def test_features_are_made_by_processes_and_made_once(config, tmp_path):
    """With the recipe's own pictures: other processes know no others."""
    try:
        pictures.places(), pictures.things()
    except pictures.PicturesMissing as missing:
        pytest.skip(str(missing))
    torch.manual_seed(0)
    model = DOVERModel(None, config=config).eval()
    first = make(model, tmp_path, 3, seed=0, variants=2, processes=2, shard=2)
    assert len(first) == 3
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("seen-*.pt")}
    again = make(model, tmp_path, 3, seed=0, variants=2, processes=2, shard=2)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("seen-*.pt")} == stamps
    assert torch.equal(first[2].moments, again[2].moments)


def test_a_start_is_taken_where_it_fits(config, small_config, tmp_path):
    before = DOVERModel(None, config=small_config)
    before.save_pretrained(tmp_path)
    model = DOVERModel(None, config=config)
    said = start_from(model, tmp_path / "model.safetensors")
    assert "dover_model.statistics_projection.weight" in said  # of two views, not of one
    assert torch.equal(model.fusion.query.weight, before.fusion.query.weight)


def test_every_clip_is_tried_with_every_others_prompt(small_scorer, moving_frames):
    """Of a scorer for which all clips are one: each prompt wins where it is first, and loses where it is second."""
    clips = [moving_frames[:4]] * 3
    align = small_scorer.score(clips, ["a", "b", "c"], layout="THWC").values[:, 1]
    wins = sum(int(align[i] > align[j]) for i in range(3) for j in range(3))
    assert measuring.right_over_wrong(small_scorer, clips, ["a", "b", "c"]) == [wins, 6]


@pytest.mark.slow
def test_measuring_and_the_card(config, tmp_path):
    """Of a model that knows nothing: the card says so in figures."""
    model = DOVERModel(None, config=config)
    model.save_pretrained(tmp_path)
    store_in_half(tmp_path)
    scorer = VideoScorer.from_pretrained(tmp_path, device="cpu")
    figures = measuring.measure(scorer, 3)
    assert set(figures["defects"]) == set(ASPECT_OF)
    for told in figures["captions"].values():
        assert 0 <= told["low"] <= told["mean"] <= told["high"] <= 1
    training = {
        "settings": {"quality_steps": 2, "steps": 1},
        "contents": 2,
        "variants": 3,
        "seed": 0,
        "minutes": 0.1,
        "device": "a CPU",
    }
    write_card(tmp_path, scorer, json.loads(json.dumps(figures)), training | {"things": 4, "places": 5})
    card = (tmp_path / "README.md").read_text()
    assert "No human rated anything" in card
    assert f"| blur | Traditional | {figures['defects']['blur']['rank']['mean']:.2f} (" in card


def test_the_pictures_of_the_packages(tmp_path):
    """Everything that the recipe names is there, with words, and apart for training and for measuring."""
    try:
        everywhere, everything = pictures.places(), pictures.things()
    except pictures.PicturesMissing as missing:
        pytest.skip(str(missing))
    assert {place.held_out for place in everywhere} == {True, False}
    trained = {thing.name for thing in everything if not thing.held_out}
    assert not trained & {thing.name for thing in everything if thing.held_out}
    assert {"pizza", "bicycle"} <= trained | {thing.name for thing in everything}
    for thing in everything[::50]:
        assert pictures.load_thing(thing)[..., 3].max() > 0.5, thing
