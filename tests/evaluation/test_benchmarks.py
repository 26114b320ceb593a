"""Small tables in each benchmark's own format: read whole, or refused with the place that is wrong."""

import json

import pyarrow.parquet
import pytest

from dover_eval.evaluation import BENCHMARKS, JudgedPair, RatedClip, TableError


@pytest.fixture
def read(tmp_path):
    def read(benchmark, content, name="table.csv"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        return BENCHMARKS[benchmark].read(path)

    return read


CHALLENGE = "video_name,Prompt,Traditional_MOS,Alignment_MOS,Aesthetic_MOS,Temporal_MOS,Overall_MOS\n"


@pytest.mark.parametrize("name", ["ratings", "taobaovd-gc"])
def test_the_challenges_table_with_a_missing_cell(read, name):
    clips = read(name, CHALLENGE + 'v1.mp4,"a cat, playing",3.2,4.1,,3.5,3.65\n')
    assert clips == [
        RatedClip("v1.mp4", "a cat, playing", {"Traditional": 3.2, "Alignment": 4.1, "Temporal": 3.5, "Overall": 3.65})
    ]


def test_own_preferences_are_gathered_by_pair(read):
    table = "prompt,video_a,video_b,aspect,label\na cat,1.mp4,2.mp4,Overall,A\na cat,1.mp4,2.mp4,Temporal,tie\n"
    assert read("pairs", table) == [JudgedPair("1.mp4", "2.mp4", "a cat", {"Overall": 1, "Temporal": 0})]
    for second in ("1.mp4,2.mp4,Overall,B", "2.mp4,1.mp4,Overall,A"):
        with pytest.raises(TableError, match="line 4: a second verdict on Overall"):
            read("pairs", f"{table}a cat,{second}\n")
    assert len(read("pairs", table + "a cat,2.mp4,1.mp4,Aesthetic,B\na dog,2.mp4,1.mp4,Overall,A\n")) == 3


def test_videogen_rewardbench(read):
    table = (
        "path_A,path_B,A_model,B_model,prompt,VQ,MQ,TA,Overall,fps_A,num_frames_A,fps_B,num_frames_B\n"
        "videos/x/1.mp4,videos/y/1.mp4,m1,m2,a dog,A,B,same,A,24,120,24,96\n"
    )
    verdicts = {"Traditional": 1, "Temporal": -1, "Alignment": 0, "Overall": 1}
    assert read("videogen-rewardbench", table) == [JudgedPair("videos/x/1.mp4", "videos/y/1.mp4", "a dog", verdicts)]
    with pytest.raises(TableError, match=r"line 2: expected A, B, same in VQ, found 'left'"):
        read("videogen-rewardbench", table.replace("a dog,A", "a dog,left"))


GENAI = [
    {
        "prompt": "a dog",
        "left_video": "https://x.org/a/1.mp4",
        "right_video": "https://x.org/b/2.mp4",
        "vote_type": vote,
    }
    for vote in ("leftvote", "rightvote", "tievote", "bothbad_vote")
]


def test_genai_bench_as_json_lines(read):
    pairs = read("genai-bench", "".join(json.dumps(row) + "\n" for row in GENAI), "t.jsonl")
    assert [pair.verdicts["Overall"] for pair in pairs] == [1, -1, 0, 0]
    assert pairs[0].video_a == "https://x.org/a/1.mp4"


def test_genai_bench_as_parquet(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.Table.from_pylist(GENAI), tmp_path / "t.parquet")
    pairs = BENCHMARKS["genai-bench"].read(tmp_path / "t.parquet")
    assert [pair.verdicts["Overall"] for pair in pairs] == [1, -1, 0, 0]


def test_t2vqa_db_keeps_bars_within_prompts(read):
    clips = read("t2vqa-db", "0001.mp4|a cat|45.5\n0002.mp4|a cat | a dog|60\n\n", "info.txt")
    assert clips[0] == RatedClip("0001.mp4", "a cat", {"Overall": 45.5})
    assert clips[1] == RatedClip("0002.mp4", "a cat | a dog", {"Overall": 60.0})
    with pytest.raises(TableError, match=r"line 1: expected file\|prompt\|MOS"):
        read("t2vqa-db", "0001.mp4 a cat\n", "info.txt")


def test_lgvq_by_position_and_no_other_width(read):
    clips = read("lgvq", "name,model,prompt,s,t,a\n007,gen,a cat,40,50,60\n")
    assert clips == [RatedClip("007", "a cat", {"Traditional": 40, "Temporal": 50, "Alignment": 60})]
    for table in ("name,prompt,s,t,a\n007,a cat,40,50,60\n", "id,name,model,prompt,s,t,a\n1,007,gen,a cat,40,50,60\n"):
        with pytest.raises(TableError, match=r"expected six columns .* found [57]"):
            read("lgvq", table)


@pytest.mark.parametrize(
    "table",
    [
        "flickr_id,mos\n3015469396,3.1\n",
        "flickr_id,file_name,MOS\n3015469396,x,3.1\n",
        "flickr_id,mos\n3015469396.0,3.1\n",  # as a spreadsheet writes it
    ],
)
def test_konvid_1k_in_both_of_its_tables(read, table):
    assert read("konvid-1k", table) == [RatedClip("3015469396", "a video", {"Traditional": 3.1})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "without rows"),
        ("video_name,Prompt\nv,x\n", "expected at least one of the columns Traditional_MOS"),
        ("name,Prompt\nv,x\n", "video_name not in name, Prompt"),
        ("video_name,Prompt,Overall_MOS\nv.mp4,x,good\n", "line 2: expected a number in Overall_MOS, found 'good'"),
        ("video_name,Prompt,Overall_MOS\nv.mp4,x,inf\n", "expected a number"),
        ("video_name,Prompt,Overall_MOS\nv.mp4,,3\n", "line 2: an empty Prompt"),
        ("video_name,Prompt,Overall_MOS\nv.mp4,x,3,4\n", "line 2: 4 cells for 3 columns"),
        ("video_name,Prompt,Overall_MOS\nv.mp4,x\n", "line 2: expected 3 cells"),
        ('video_name,Prompt,Overall_MOS\na.mp4,"a dog,\nrunning",3\n\nb.mp4,x,y\n', "line 5: expected a number"),
        ("video_name,Prompt,Overall_MOS,Overall_MOS\na.mp4,x,1,5\n", "the columns Overall_MOS are there twice"),
        ('video_name,Prompt,Overall_MOS\na.mp4,"x"y,1\n', "line 2: no CSV"),
        ("video_name,Prompt,Overall_MOS\nv.mp4,x,\n", "every cell of Overall_MOS is empty"),
    ],
)
def test_a_wrong_table_says_what_and_where(read, content, words):
    with pytest.raises(TableError, match=words):
        read("ratings", content)


def test_columns_without_a_name_are_a_spreadsheet_s_and_nobody_s(read):
    (clip,) = read("ratings", "video_name,Prompt,Overall_MOS,,\na.mp4,x,3,,\n")
    assert clip.ratings == {"Overall": 3}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.xlsx", "{", "expected a .csv"),
        ("t.json", "{", "cannot be read"),
        ("t.json", "[" * 100_000, "t.json: cannot be read"),
        ("t.jsonl", '{"Overall_MOS": ' + "1" * 5000 + "}", "t.jsonl, line 1: cannot be read"),
    ],
    ids=["ending", "cut", "nested", "digits"],
)
def test_other_files_are_refused(read, name, content, words):
    with pytest.raises(TableError, match=words):
        read("ratings", content, name)


def test_a_folder_and_doubled_columns_of_parquet_are_refused(tmp_path):
    (tmp_path / "t.parquet").mkdir()
    with pytest.raises(TableError, match="a folder, expected a table"):
        BENCHMARKS["ratings"].read(tmp_path / "t.parquet")
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("video_name", "Prompt", "Prompt")])
    pyarrow.parquet.write_table(pyarrow.table([["a"]] * 3, schema=schema), tmp_path / "u.parquet")
    with pytest.raises(TableError, match="the columns Prompt are there twice"):
        BENCHMARKS["ratings"].read(tmp_path / "u.parquet")


def test_a_blank_around_a_columns_name_is_none_of_it(read, tmp_path):
    clips = [RatedClip("v.mp4", "a cat", {"Overall": 3.0, "Temporal": 4.0})]
    assert read("ratings", "video_name,Prompt,Overall_MOS, Temporal_MOS \nv.mp4,a cat,3,4\n") == clips
    path = tmp_path / "t.parquet"
    row = {"video_name": "v.mp4", "Prompt": "a cat", "Overall_MOS": 3.0, " Temporal_MOS": 4.0}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    assert BENCHMARKS["ratings"].read(path) == clips
    with pytest.raises(TableError, match="the columns Prompt are there twice"):
        read("ratings", "video_name,Prompt, Prompt,Overall_MOS\nv.mp4,a cat,a dog,3\n")


MISSPELT = {
    "aesthetic_MOS": "expected the column Aesthetic_MOS, found aesthetic_MOS",
    "Aesthetic_mos": "expected the column Aesthetic_MOS, found Aesthetic_mos",
    "Astetic_MOS": "the ratings Astetic_MOS are none of Traditional_MOS",
}


@pytest.mark.parametrize("column", MISSPELT)
def test_a_misspelt_rating_beside_a_right_one_is_refused(read, column):
    with pytest.raises(TableError, match=MISSPELT[column]):
        read("ratings", f"video_name,Prompt,Overall_MOS,{column}\nv.mp4,a cat,3,4\n")


def test_other_columns_are_left_alone_also_beside_one_of_their_name(read):
    table = "video_name,Prompt,prompt,Overall_MOS,MOS_std,votes\nv.mp4,a cat,x,3,0.5,12\n"
    assert read("ratings", table) == [RatedClip("v.mp4", "a cat", {"Overall": 3.0})]


def test_a_missing_table(tmp_path):
    with pytest.raises(TableError, match="cannot be read"):
        BENCHMARKS["ratings"].read(tmp_path / "none.csv")


def test_every_benchmark_says_where_it_is_to_be_had():
    assert all(benchmark.where for benchmark in BENCHMARKS.values())


def test_a_prompt_is_a_text_and_not_what_is_written_like_one(tmp_path):
    path = tmp_path / "t.parquet"
    schema = pyarrow.schema([("video_name", "string"), ("Prompt", "binary"), ("Overall_MOS", "float64")])
    pyarrow.parquet.write_table(pyarrow.table([["a"], [b"a dog"], [3.0]], schema=schema), path)
    assert BENCHMARKS["ratings"].read(path)[0].prompt == "a dog"
    path = tmp_path / "t.jsonl"
    path.write_text('{"video_name": "a", "Prompt": ["a dog"], "Overall_MOS": 3, "tags": ["x"]}\n')
    with pytest.raises(TableError, match=r"t.jsonl, line 1: expected a text in Prompt, found \['a dog'\]"):
        BENCHMARKS["ratings"].read(path)
