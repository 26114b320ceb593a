"""Tables to learn from: ratings with gaps, preferences with votes, benchmarks' layouts, data sets on the hub."""

import shutil

import pytest

from dover_eval.evaluation import TableError
from dover_eval.opinion import SCORE_NAMES
from dover_eval.training.batches import preference
from dover_eval.training.settings import TableSettings
from dover_eval.training.tables import load_items, read_items
from tests.training.small import CLIPS, HEART, HEARTS, PAIR_COLUMNS, RATING_COLUMNS, STAR, STAR_PAIRS, STARS


def ratings(path, **settings):
    return TableSettings(table=str(path), videos=str(CLIPS), **settings)


def pairs(path):
    return TableSettings(table=str(path), videos=str(CLIPS), kind="pairs")


@pytest.mark.parametrize("name", ["ratings.csv", "ratings.parquet"])
def test_ratings_are_read_and_gaps_stay_gaps(write_table, name):
    examples = read_items(ratings(write_table(name, STARS)))
    assert [example.videos for example in examples] == [(row[0],) for row in STARS]
    assert {example.prompt for example in examples} == {STAR}
    clean, noisy, shuffled = (example.ratings for example in examples)
    assert clean == {"Traditional": 4.4, "Alignment": 4.6, "Aesthetic": 4.5, "Temporal": 4.5, "Overall": 4.6}
    assert "Aesthetic" not in noisy
    assert "Overall" not in shuffled


def test_missing_columns_are_missing_ratings(write_table):
    columns = ("video_name", "Prompt", "Overall_MOS")
    (example,) = read_items(ratings(write_table(rows=[("star_clean.mp4", STAR, 4)], columns=columns)))
    assert example.ratings == {"Overall": 4}


def test_another_scale_becomes_ours(write_table):
    columns = ("video_name", "Prompt", "Overall_MOS")
    path = write_table(rows=[("star_clean.mp4", STAR, 100), ("star_noisy.mp4", STAR, 25)], columns=columns)
    first, second = read_items(ratings(path, rating_range=(0, 100)))
    assert first.ratings["Overall"] == 5
    assert second.ratings["Overall"] == 2
    with pytest.raises(
        TableError, match=r"ratings.csv: star_clean.mp4: 100 is beyond the scale, worst 1 to best 5; rating_range"
    ):
        read_items(ratings(path))


def test_the_aspects_of_a_pair_are_one_example_and_votes_are_shares(write_table):
    noisy, shuffled, tied = read_items(pairs(write_table("pairs.csv", STAR_PAIRS, PAIR_COLUMNS)))
    assert noisy.videos == ("star_clean.mp4", "star_noisy.mp4")
    assert preference(noisy, "Traditional") == (0.9, pytest.approx(0.1), 0)
    assert preference(noisy, "Overall") == (0, 0, 0)
    assert noisy.verdicts == {"Traditional": 1}
    assert preference(shuffled, "Temporal") == (0, 1, 0)
    assert preference(shuffled, "Overall") == (0.2, 0.8, 0)
    assert shuffled.verdicts == {"Temporal": -1, "Overall": -1}
    assert preference(tied, "Temporal") == (0, 0, 1)
    assert tied.verdicts == {"Temporal": 0}


REFUSED_PAIRS = {
    "another label": (("a.mp4", "b.mp4", "Overall", "C", ""), "expected A, B, tie in label, found 'C'"),
    "another aspect": (("a.mp4", "b.mp4", "Beauty", "A", ""), "in aspect, found 'Beauty'"),
    "a clip against itself": (("a.mp4", "a.mp4", "Overall", "A", ""), "a.mp4 is compared with itself"),
    "votes against the label": (("a.mp4", "b.mp4", "Overall", "A", 0.2), "a share of 0.2 for A contradicts the label"),
    "votes against B": (("a.mp4", "b.mp4", "Overall", "B", 0.8), "a share of 0.8 for A contradicts the label"),
    "votes for a tie": (("a.mp4", "b.mp4", "Overall", "tie", 0.7), "contradicts the label"),
    "a share that is none": (("a.mp4", "b.mp4", "Overall", "A", 90), "expected a share in 0-1, found 90"),
}


@pytest.mark.parametrize("what", REFUSED_PAIRS)
def test_preferences_that_make_no_sense_are_refused(write_table, what):
    row, message = REFUSED_PAIRS[what]
    with pytest.raises(TableError, match=rf"pairs.csv, line 2: .*{message}"):
        read_items(pairs(write_table("pairs.csv", [(HEART, *row)], PAIR_COLUMNS)))


@pytest.mark.parametrize("column", ["Share", "Content"])
def test_a_column_in_other_capitals_is_refused(write_table, column):
    """Or votes would become certain verdicts, and contents come apart."""
    columns = (*PAIR_COLUMNS[:-1], column)
    with pytest.raises(TableError, match=f"expected the column {column.lower()}, found {column}"):
        read_items(pairs(write_table("pairs.csv", STAR_PAIRS, columns)))
    if column == "Content":
        rows = [(*row, "scene 1") for row in HEARTS]
        with pytest.raises(TableError, match="expected the column content, found Content"):
            read_items(ratings(write_table(rows=rows, columns=(*RATING_COLUMNS, column))))


def test_any_row_of_a_pair_may_tell_its_content_and_none_another(write_table):
    columns = (*PAIR_COLUMNS, "content")
    rows = [(STAR, "a.mp4", "b.mp4", "Overall", "A", "", content) for content in ("", "scene 7", "scene 8", "")]
    rows = [(*row[:3], aspect, *row[4:]) for row, aspect in zip(rows, SCORE_NAMES, strict=False)]
    for order in (rows[:2], rows[1::-1]):
        (example,) = read_items(pairs(write_table("pairs.csv", order, columns)))
        assert example.content == "scene 7"
    with pytest.raises(TableError, match=r"line 4: a\.mp4 and b\.mp4 are of content scene 8, and before of scene 7"):
        read_items(pairs(write_table("pairs.csv", rows, columns)))


def test_a_second_verdict_is_refused(write_table):
    row = (STAR, "a.mp4", "b.mp4", "Overall", "A", "")
    for second in (row, (STAR, "b.mp4", "a.mp4", "Overall", "B", "")):
        with pytest.raises(TableError, match="line 3: a second verdict on Overall"):
            read_items(pairs(write_table("pairs.csv", [row, second], PAIR_COLUMNS)))


def test_other_benchmarks_files_are_read(tmp_path):
    path = tmp_path / "info.txt"
    path.write_text(f"star_clean.mp4|{STAR}|3.5\n")
    (example,) = read_items(TableSettings(table=str(path), videos=str(CLIPS), kind="t2vqa-db"))
    assert example.ratings == {"Overall": 3.5}

    path = tmp_path / "pairs.csv"
    path.write_text("path_A,path_B,prompt,VQ,MQ,TA,Overall\na.mp4,b.mp4,a star,A,same,,B\n")
    (example,) = read_items(TableSettings(table=str(path), videos=str(CLIPS), kind="videogen-rewardbench"))
    assert example.verdicts == {"Traditional": 1, "Temporal": 0, "Overall": -1}


def test_clips_are_found_by_name_and_missing_ones_told(write_table):
    rows = [*STARS, ("gone.mp4", STAR, 1, 1, 1, 1, 1)]
    examples, missing = load_items(ratings(write_table(rows=rows)))
    assert [example.videos[0] for example in examples] == [str((CLIPS / row[0]).resolve()) for row in STARS]
    assert missing == ["gone.mp4"]


def test_a_folder_without_the_clips_is_refused(write_table, tmp_path):
    table = write_table()
    with pytest.raises(TableError, match=r"there is no folder .*nowhere"):
        load_items(TableSettings(table=str(table), videos=str(tmp_path / "nowhere")))
    with pytest.raises(TableError, match=r"ratings.csv: .*: a folder without videos"):
        load_items(TableSettings(table=str(table), videos=str(tmp_path)))
    (tmp_path / "another.mp4").touch()
    with pytest.raises(TableError, match=r"none of its 6 clips is in .*, for one heart_clean\.mp4"):
        load_items(TableSettings(table=str(table), videos=str(tmp_path)))


def test_a_content_column_is_kept(write_table):
    rows = [(*row, "scene 1") for row in HEARTS[:2]]
    examples = read_items(ratings(write_table(rows=rows, columns=(*RATING_COLUMNS, "content"))))
    assert [example.content for example in examples] == ["scene 1", "scene 1"]


REVISION = "8c5f0a4d2b7e9f1c3a6d8e0b2c4f6a8d0e1b3c5d"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch, write_table):
    """The hub's cache as it is after a download, and no connection."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    repository = cache / "datasets--somebody--rated-clips"
    snapshot = repository / "snapshots" / REVISION
    (snapshot / "videos").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(REVISION)
    for name, *_ in STARS:
        shutil.copy(CLIPS / name, snapshot / "videos")
    shutil.copy(write_table("train.parquet", STARS), snapshot / "train.parquet")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_a_data_set_of_the_hub_is_read_from_its_cache(hub_cache):
    settings = TableSettings(table="train.parquet", videos="videos", hub="somebody/rated-clips")
    examples, missing = load_items(settings)
    assert len(examples) == 3
    assert not missing
    assert all(example.videos[0].startswith(str(hub_cache)) for example in examples)


def test_a_data_set_that_is_not_to_be_had_is_said_so(hub_cache):
    with pytest.raises(TableError, match="somebody/else is neither in the hub's cache nor to be had from the hub"):
        load_items(TableSettings(table="train.csv", videos="videos", hub="somebody/else"))
    with pytest.raises(TableError, match=r"somebody/rated-clips has no table test\.csv"):
        load_items(TableSettings(table="test.csv", videos="videos", hub="somebody/rated-clips"))
