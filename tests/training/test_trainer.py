"""The loop: examples that are true, training that repeats to the bit, and that teaches."""

import pytest
import torch

from dover_eval import DOVERModel
from dover_eval.training.data import BEST, DrawnContents, collate
from dover_eval.training.trainer import TrainingSettings, train


def test_batches_pair_every_clip_with_every_prompt(small_config):
    contents = list(DrawnContents(small_config, 3, seed=0, variants=2))
    batch = collate(contents)
    assert batch.frames.shape == (6, 3, 4, 32, 48)
    assert batch.targets.shape == (6, 6, 4)
    assert batch.weights.sum(1).tolist() == pytest.approx([1] * 6)
    own = torch.arange(6) // 2
    for clip in range(6):
        assert batch.fits[clip, 2 * own[clip]]  # its caption
        assert not batch.fits[clip, 2 * own[clip] + 1]  # the one with a word wrong
        assert batch.targets[clip, 2 * own[clip], 1] == pytest.approx(BEST)
        assert batch.targets[clip, 2 * own[clip] + 1, 1] < BEST - 0.9
    for column, aspect in ((0, 0), (2, 1), (3, 2)):  # quality does not hang on the prompt
        strengths = torch.cat([content.strengths for content in contents])[:, aspect]
        torch.testing.assert_close(batch.targets[:, 0, column], BEST - 3.4 * strengths)
        assert (batch.targets[:, :, column] == batch.targets[:, :1, column]).all()


def test_contents_do_not_depend_on_the_worker(small_config):
    data = DrawnContents(small_config, 4, seed=5)
    assert torch.equal(list(data)[3].frames, data.content(3).frames)
    assert not torch.equal(data.content(2).frames, data.content(3).frames)


def run(config, steps):
    torch.manual_seed(0)
    model = DOVERModel(None, config=config)
    return train(model, TrainingSettings(steps, contents=2, workers=0, learning_rate=3e-3, readout_contents=6))


@pytest.fixture
def one_thread():
    """With more, a sum may be split in another place each run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_the_same_seed_gives_the_same_weights(small_config):
    """Up to rounding, which depends on where in memory a sum's terms lie."""
    first, second = run(small_config, 3), run(small_config, 3)
    differences = [(a - b).abs().mean() for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert torch.stack(differences).max() < 2e-4
    torch.manual_seed(1)
    other = DOVERModel(None, config=small_config)
    assert (other.fusion.query.weight - first.fusion.query.weight).abs().mean() > 0.01
    assert not first.training


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_it_learns(small_config, monkeypatch):
    """Shown the same two scenes again and again, it comes to know their scores."""
    drawn = [DrawnContents(small_config, 2, seed=3).content(i) for i in range(2)]
    monkeypatch.setattr(DrawnContents, "content", lambda self, index: drawn[index % 2])
    batch = collate(drawn)
    torch.manual_seed(0)
    model = DOVERModel(None, config=small_config).eval()

    def error():
        text = model.text_encoder.encode_batch(batch.prompts)
        with torch.no_grad():
            return (model.score_encoded(batch.frames, text)[:, :4] - batch.targets.diagonal().T).abs().mean().item()

    before = error()
    train(model, TrainingSettings(40, contents=2, workers=0, learning_rate=3e-3, ema_decay=0.8, readout_contents=4))
    assert error() < 0.5 * before
