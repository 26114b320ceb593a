"""The example of docs/training.md is a run."""

import re
from pathlib import Path

import pytest
import yaml

from dover_eval import VideoScorer
from dover_eval.training import run
from dover_eval.training.settings import TrainSettings
from tests.training.small import CLIPS, HEARTS, PAIR_COLUMNS, STAR_PAIRS, STARS

GUIDE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.mark.slow
def test_the_example_of_the_guide_trains_the_embedded_default(write_table, tmp_path, monkeypatch):
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    write_table(rows=[*HEARTS, *STARS])
    write_table("pairs.csv", STAR_PAIRS, PAIR_COLUMNS)
    (tmp_path / "clips").symlink_to(CLIPS)
    monkeypatch.setattr(run, "RESAMPLES", 10)
    result = run.train(TrainSettings.load(tmp_path / "run.yaml"))
    assert VideoScorer.from_pretrained(result.folder).score([CLIPS / STARS[0][0]], STARS[0][1]).ok
    card = (result.folder / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "apache-2.0"
    assert "# My raters' model" in card
    assert "It began with the checkpoint default, which began with " in card
