"""Two results files: differences, intervals and tests against known answers; what does not compare is refused."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest

from dover_eval.opinion import SCORE_NAMES
from tests.looking.conftest import make_row, make_rows, page_data, write_rows


@pytest.fixture
def files(tmp_path):
    """Writes rows as A and B, and reads them back."""
    from dover_eval.results import read_results

    def write(a, b):
        return [read_results(write_rows(rows, tmp_path / f"{name}.jsonl")) for name, rows in (("a", a), ("b", b))]

    return write


def shifted(rows, **shifts):
    """The rows of another model: other files, the same prompts, some scores moved."""
    moved = []
    for i, row in enumerate(rows):
        noise = 0.02 * (-1) ** i
        scores = [row[name] + shifts.get(name, 0) + (noise if name in shifts else 0) for name in SCORE_NAMES]
        moved.append(make_row(f"b/{row['video_name']}", row["Prompt"], [min(5, max(1, s)) for s in scores]))
    return moved


def test_a_difference_that_is_there_is_shown_and_one_that_is_not_is_not(files):
    from dover_eval.evaluation.compare import compare_results

    rows = make_rows(40)
    comparison = compare_results(*files(rows, shifted(rows, Alignment=0.1, Temporal=-0.1)), resamples=999)
    found = {d.name: d for d in comparison.differences}
    assert [d.name for d in comparison.differences if d.shown] == ["Alignment", "Temporal"]
    assert found["Alignment"].difference.value == pytest.approx(0.1, abs=1e-6)
    assert 0.09 < found["Alignment"].difference.low < 0.1 < found["Alignment"].difference.high < 0.11
    assert (found["Alignment"].wins, found["Alignment"].losses, found["Alignment"].ties) == (40, 0, 0)
    assert found["Temporal"].win_rate.value == 0
    assert found["Aesthetic"].difference.value == 0
    assert found["Aesthetic"].win_rate.value == 0.5


def test_a_file_against_itself_differs_in_nothing(files):
    from dover_eval.evaluation.compare import compare_results

    rows = make_rows(12)
    for d in compare_results(*files(rows, rows), resamples=199).differences:
        assert (d.difference.value, d.difference.low, d.difference.high) == (0, 0, 0)
        assert d.p == d.p_holm == 1
        assert not d.shown


def test_the_order_of_a_prompt_s_clips_makes_no_difference(files):
    """Sums in another order differ in their last bits, which is no win and no loss."""
    from dover_eval.evaluation.compare import compare_results

    rng = np.random.default_rng(0)
    rows = [
        make_row(f"{p}_{i}.mp4", f"prompt {p}", rng.uniform(1, 5, 5).round(6).tolist())
        for p in range(20)
        for i in range(3)
    ]
    for d in compare_results(*files(rows, rows[::-1]), resamples=199).differences:
        assert (d.wins, d.losses, d.ties) == (0, 0, 20)


def test_few_prompts_have_the_exact_p_of_all_swaps():
    """Eight prompts have 256 swaps of A and B: all are counted, here and in the test, one by one."""
    from dover_eval.evaluation.compare import score_differences

    rng = np.random.default_rng(3)
    a, b = rng.uniform(1, 5, (2, 8, 5))
    gain = b - a
    signs = np.array(list(itertools.product((1, -1), repeat=8)))
    null = signs @ gain / 8
    # scipy doubles the smaller tail.
    seen = gain.mean(axis=0)
    tails = np.minimum((null >= seen - 1e-12).mean(axis=0), (null <= seen + 1e-12).mean(axis=0))
    found = [d.p for d in score_differences(a, b)]
    np.testing.assert_allclose(found, np.minimum(2 * tails, 1))


def test_random_swaps_in_batches_come_near_to_all_swaps(monkeypatch):
    from dover_eval.evaluation import compare

    monkeypatch.setattr(compare, "BATCH_VALUES", 1000)
    rng = np.random.default_rng(4)
    a, b = rng.uniform(1, 5, (2, 14, 5))
    told = []
    some = compare.score_differences(a, b, progress=lambda done, total: told.append((done, total)))
    every = compare.score_differences(a, b, resamples=2**14)
    assert [d.p for d in some] == pytest.approx([d.p for d in every], abs=0.03)
    assert [d.p for d in some] != [d.p for d in every]
    assert told == sorted(told)
    assert told[-1] == (2 * 9999, 2 * 9999)


def test_intervals_agree_with_students_where_he_is_right():
    from scipy import stats

    from dover_eval.evaluation.compare import score_differences

    rng = np.random.default_rng(0)
    a = rng.uniform(2, 4, (400, 5))
    b = a + rng.normal(0.05, 0.3, (400, 5))
    for i, d in enumerate(score_differences(a, b)):
        low, high = stats.ttest_rel(b[:, i], a[:, i]).confidence_interval(0.95)
        assert d.difference.low == pytest.approx(low, abs=0.004)
        assert d.difference.high == pytest.approx(high, abs=0.004)


def test_holms_correction_as_in_his_paper():
    from dover_eval.evaluation.compare import holm

    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm(np.array([0.5, 0.9])), [1, 1])


def test_the_same_files_give_the_same_figures(files):
    from dover_eval.evaluation.compare import compare_results

    rows = make_rows(20)
    a, b = files(rows, shifted(rows, Overall=0.05))
    assert compare_results(a, b, resamples=199).differences == compare_results(a, b, resamples=199).differences


def test_several_clips_of_a_prompt_count_as_their_mean(files):
    from dover_eval.evaluation.compare import compare_results

    a = [make_row("1.mp4", "p", [2] * 5), make_row("2.mp4", "p", [4] * 5), make_row("3.mp4", "q", [3] * 5)]
    b = [make_row("1.mp4", "p", [3.5] * 5), make_row("3.mp4", "q", [3] * 5)]
    comparison = compare_results(*files(a, b), resamples=99)
    assert comparison.prompts == ("p", "q")
    assert comparison.scores_a[:, 0].tolist() == [3, 3]
    assert comparison.differences[0].difference.value == pytest.approx(0.25)
    assert comparison.repeated == 1


def test_what_is_not_in_the_figures_is_told(files):
    from dover_eval.evaluation.compare import compare_results
    from dover_eval.looking.compare_page import remarks

    a, b = make_rows(8), make_rows(8)
    a[2] = make_row(a[2]["video_name"], a[2]["Prompt"], [0] * 5, "broken")
    b[3]["Prompt"] = "another"
    b.append(make_row("b/extra.mp4", "scene 5", [0] * 5, "broken"))
    comparison = compare_results(*files(a, b), resamples=99)
    assert len(comparison.prompts) == 6
    assert remarks(comparison) == [
        '1 prompt only in a.jsonl, not compared: "scene 3"',
        '1 prompt only in b.jsonl, not compared: "another"',
        '1 prompt without a scored clip in one file, not compared: "scene 2"',
        "1 failed clip of b.jsonl left out of its prompt's mean",
    ]


def test_the_prompts_that_differ_most_come_first(files):
    from dover_eval.evaluation.compare import compare_results

    rows = make_rows(10)
    moved = shifted(rows)
    moved[4]["Overall"] -= 0.9
    moved[7]["Overall"] += 0.5
    assert compare_results(*files(rows, moved), resamples=99).largest(4, 2) == [4, 7]


def test_a_narrow_terminal_has_every_digit(dover, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "50")
    rows = make_rows(8)
    result = dover("compare", write_rows(rows, tmp_path / "a.jsonl"), write_rows(shifted(rows), tmp_path / "b.jsonl"))
    assert "…" not in result.stdout
    (overall,) = (line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["Overall"])
    assert overall == ["Overall", "3.00", "3.00", "+0.000", "+0.000", "1.000", "50%"]


def test_identical_scores_are_said_to_be(dover, tmp_path):
    """Of two files of one name, which their folders tell apart."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write_rows(make_rows(5), tmp_path / folder / "r.jsonl")
    files, output = [tmp_path / folder / "r.jsonl" for folder in ("a", "b")], tmp_path / "p.html"
    result = dover("compare", *files, "-o", output)
    assert "the scores of A and B are identical" in result.stdout
    assert "differs the most" not in result.stdout
    page = output.read_text(encoding="utf-8")
    assert "The scores of A and B are identical." in page
    for path in files:
        assert f'<span class="mono">{path}</span>' in page
    assert page_data(output)["largest"] == [[]] * 5


def test_a_page_subtracts_what_the_terminal_subtracts(dover, tmp_path):
    """Decimals that are not shown decide what is: +0.71, and a win."""
    a = [make_row(f"{i}.mp4", f"p{i}", [2.0004] * 5) for i in range(2)]
    b = [make_row(f"{i}.mp4", f"p{i}", [2.70549 + i] * 5) for i in range(2)]
    output = tmp_path / "p.html"
    result = dover("compare", write_rows(a, tmp_path / "a.jsonl"), write_rows(b, tmp_path / "b.jsonl"), "-o", output)
    assert "+0.71  p0" in result.stdout
    before, after = (side[4][0] for side in page_data(output)["scores"])
    assert f"{after - before:+.2f}" == "+0.71"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [row | {"fingerprint": "ba9876543210"} for row in rows], "scores of different models"),
        (lambda rows: [row | {"Prompt": "else"} for row in rows[:1]], "have no prompt in common"),
        (lambda rows: rows[:1], "have 1 prompt with scores in both, expected at least 2 (1 in common)"),
        (lambda rows: [*rows, rows[0]], "rows 1 and 7 are both out/000.mp4, expected each clip once"),
    ],
)
def test_what_does_not_compare_is_refused(dover, tmp_path, change, words):
    rows = make_rows(6)
    a, b = write_rows(rows, tmp_path / "a.jsonl"), write_rows(change(rows), tmp_path / "b.csv")
    result = dover("compare", a, b, "-o", tmp_path / "p.html")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "p.html").exists()


def test_a_file_whose_name_is_no_text_is_refused(dover, tmp_path):
    files = [write_rows(make_rows(3), tmp_path / name) for name in ("a.jsonl", "b\udcff.jsonl")]
    result = dover("compare", *files)
    assert result.exit_code == 2
    assert "b\\udcff.jsonl': a name that is not UTF-8" in result.stderr


def test_what_the_command_needs_is_asked_for_before_it_works(dover, tmp_path, monkeypatch):
    a = write_rows(make_rows(3), tmp_path / "a.jsonl")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "jinja2" else find(name, *of))
    result = dover("compare", a, a)
    assert result.exit_code == 1
    assert "jinja2 is not installed: pip install 'dover-eval[report]'" in result.stderr


def test_the_table_in_the_terminal(dover, tmp_path):
    rows = make_rows(30)
    rows[3]["Prompt"] = "[bold]a \x1b]0;title\x07 prompt\x9b[/nonsense] with markup"
    a = write_rows(rows, tmp_path / "a.parquet")
    b = write_rows([*shifted(rows, Overall=0.1), make_row("x.mp4", "only here", [3] * 5)], tmp_path / "b.jsonl")
    result = dover("compare", a, b)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "A is a.parquet, B is b.jsonl; 30 prompts, fingerprint 0123456789ab"
    (overall,) = (line.split() for line in lines if line.split()[:1] == ["Overall"] and "to" in line)
    assert overall[3] == "+0.100"
    assert overall[-1] == "100%"
    assert '1 prompt only in b.jsonl, not compared: "only here"' in result.stdout
    rows[3]["Overall"] += 0.9
    result = dover("compare", a, write_rows(shifted(rows), tmp_path / "c.jsonl"))
    assert "+0.90  [bold]a \\x1b]0;title\\x07 prompt\\x9b[/nonsense] with markup" in result.stdout
    assert not {"\x1b", "\x07", "\x9b"} & set(result.stdout)
