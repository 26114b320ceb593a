"""The examples run offline and print their ledgers."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def run_example(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, "--untrained", "--prompt", "waves at night", *arguments])
        monkeypatch.syspath_prepend(str(EXAMPLES))
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run_example


def test_the_callback_example_prints_a_line_a_scored_step_and_plots(run: Callable[..., str], tmp_path: Path) -> None:
    lines = run("diffusers_callback.py", "--every", "10", "--plot", str(tmp_path / "scores.png")).splitlines()
    assert lines[0] == '"waves at night": 9 frames of 48x64'
    assert lines[1].split()[-6:] == ["Traditional", "Alignment", "Aesthetic", "Temporal", "Overall", "scored"]
    assert [line.split()[0] for line in lines[2:4]] == ["10", "20"]
    assert "scheduler" in lines[2]
    assert "final latents" in lines[3]
    assert (tmp_path / "scores.png").exists()


def test_the_callback_example_stops_a_bad_video(run: Callable[..., str]) -> None:
    output = run("diffusers_callback.py", "--every", "4", "--stop-below", "5.1", "--stop-after", "0.3")
    assert output.splitlines()[-1] == "stopped after step 8: Overall below 5.1"


def test_the_best_of_n_example_prints_every_seeds_fate(run: Callable[..., str]) -> None:
    output = run("best_of_n.py", "--n", "3")
    assert "BestOf(3 seeds, winner" in output
    assert output.count(": dropped, Overall") == 2
    assert output.count(": won, Overall") == 1
    assert "76 of 120 evaluations, 44 saved" in output
