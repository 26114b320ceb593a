"""The recipes, end to end: data sets of a few rows in the hub's own layouts, with real clips, to a checkpoint."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from dover_eval import DOVERModel, VideoScorer
from examples.recipes.tables import SchemaError, from_votes
from tests.training.small import CLIPS, HEART, STAR, TINY_MODEL

REPOSITORY = Path(__file__).parents[2]
# (prompt, A, B), of two contents, and the share of the votes for A.
PAIRS = (
    (HEART, "heart_clean.mp4", "heart_blurred.mp4", 0.9),
    (HEART, "heart_flickering.mp4", "heart_clean.mp4", 0.5),
    (STAR, "star_noisy.mp4", "star_clean.mp4", 0.25),
)


def write_parquet(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def votes(questions: tuple[str, ...], share: float) -> dict[str, float]:
    return {f"weighted_results{side}_{q}": part for q in questions for side, part in ((1, share), (2, 1 - share))}


def rapidata(source: Path) -> None:
    """One repository, as the reader of the sets for veo3, pika2.2 and wan2.1 has it."""
    repository = source / "text-2-video-human-preferences-veo3"
    shutil.copytree(CLIPS, repository / "videos" / "veo3")
    questions = ("Preference", "Coherence", "Alignment")
    rows = [
        {"prompt": prompt, "file_name1": a, "file_name2": b, "source": "x"} | votes(questions, share)
        for prompt, a, b, share in PAIRS
    ]
    write_parquet(repository / "data" / "train-00000-of-00001.parquet", rows)


def datapoint(source: Path) -> None:
    media = lambda name: {"bytes": (CLIPS / name).read_bytes(), "path": name}
    questions = ("Coherence", "Aesthetic", "Prompt_Adherence")
    rows = [
        {"prompt": prompt, "video1": media(a), "video2": media(b), "model1": "p", "model2": "q"}
        | votes(questions, share)
        for prompt, a, b, share in PAIRS
    ]
    write_parquet(source / "text-2-video-human-preferences-motion" / "data" / "train-00000-of-00001.parquet", rows)


def videofeedback(source: Path) -> None:
    names = ("visual quality", "temporal consistency", "dynamic degree", "text-to-video alignment")
    links = "https://huggingface.co/datasets/hexuan21/VideoFeedback-videos-mp4/resolve/main/h/"
    (source / "VideoFeedback-videos-mp4" / "h").mkdir(parents=True)
    rows = []
    for i, clip in enumerate(sorted(CLIPS.glob("*.mp4"))):
        shutil.copy(clip, source / "VideoFeedback-videos-mp4" / "h")
        rating = dict.fromkeys((*names, "factual consistency"), 1 + i % 4)
        rows.append({"id": clip.stem, "text prompt": STAR, "video link": links + clip.name} | rating)
    write_parquet(source / "VideoFeedback" / "annotated" / "train-00000-of-00002.parquet", rows)


def mj_bench_video(source: Path) -> None:
    repository = source / "MJ-BENCH-VIDEO"
    shutil.copytree(CLIPS, repository / "videos" / "train")
    categories = ("Alignment", "Safety", "Fineness", "Coherence & Consistency", "Bias")
    verdict = {0.9: "Video 1 better", 0.25: "Video 2 better", 0.5: "Same"}
    rows = [
        {
            "caption": prompt,
            "video_0_path": f"train/{a}",
            "video_1_path": f"train/{b}",
            "category_preference": dict.fromkeys(categories, "Same") | {"Fineness": verdict[share]},
            "overall_preference": verdict[share],
            "discard": False,
            "video_0_total_score": 1,
            "video_1_total_score": 0,
        }
        for prompt, a, b, share in PAIRS
    ]
    rows[2]["category_preference"]["Alignment"] = "Hard to judge"
    (repository / "train.json").write_text(json.dumps([*rows, rows[0] | {"discard": True}]))


SOURCES: dict[str, Callable[[Path], None]] = {
    "rapidata": rapidata,
    "datapoint": datapoint,
    "videofeedback": videofeedback,
    "mj_bench_video": mj_bench_video,
}


def recipe(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.recipes", *map(str, arguments)]
    env = os.environ | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=250, check=False, env=env)


def prepared(tmp_path: Path, *names: str) -> Path:
    """The working folder of recipes, converted from local copies."""
    sources = []
    for name in names:
        SOURCES[name](tmp_path / name)
        sources += ["--source", f"{name}={tmp_path / name}"]
    done = recipe(*names, "--work", tmp_path / "work", "--prepare", *sources)
    assert done.returncode == 0, done.stderr
    return tmp_path / "work"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_votes_become_labels_with_shares():
    told = lambda *given: (made := from_votes("p", "a", "b", "Overall", *given)) and (made.label, made.share)
    assert told(0.75, 0.25) == ("A", 0.75)
    assert told(1, 3) == ("B", 0.25)
    assert told(2, 2) == ("tie", 0.5)
    assert told(0, 0) is None


def test_rapidata_and_datapoint_become_pairs_with_shares(tmp_path):
    work = prepared(tmp_path, "rapidata", "datapoint")
    table = rows(work / "rapidata" / "pairs.csv")
    assert len(table) == 9  # three pairs, three questions each
    assert table[0] == {
        "prompt": HEART,
        "video_a": "text-2-video-human-preferences-veo3/videos/veo3/heart_clean.mp4",
        "video_b": "text-2-video-human-preferences-veo3/videos/veo3/heart_blurred.mp4",
        "aspect": "Overall",
        "label": "A",
        "share": "0.9",
        "content": HEART,
    }
    assert [row["label"] for row in table if row["aspect"] == "Temporal"] == ["A", "tie", "B"]
    table = rows(work / "datapoint" / "pairs.csv")
    assert {row["aspect"] for row in table} == {"Temporal", "Aesthetic", "Alignment"}
    clips = {row["video_a"] for row in table} | {row["video_b"] for row in table}
    assert len(clips) == 5  # heart_clean is in two pairs, and one file
    assert {path.name for path in (work / "datapoint" / "videos").iterdir()} == clips
    both = yaml.safe_load((work / "train.yaml").read_text())
    assert [table["table"] for table in both["data"]["train"]] == ["rapidata/pairs.csv", "datapoint/pairs.csv"]
    assert "Rapidata" in both["card"]["notes"]
    assert "CC-BY-4.0" in both["card"]["notes"]


def test_videofeedback_becomes_ratings_on_its_own_scale(tmp_path):
    work = prepared(tmp_path, "videofeedback")
    table = rows(work / "videofeedback" / "ratings.csv")
    assert len(table) == 9
    assert table[3]["video_name"] == "h/heart_dark.mp4"
    assert (table[3]["Traditional_MOS"], table[3]["Aesthetic_MOS"]) == ("4", "")
    (settings,) = yaml.safe_load((work / "train.yaml").read_text())["data"]["train"]
    assert settings["rating_range"] == [1, 4]


def test_mj_bench_video_becomes_pairs(tmp_path):
    table = rows(prepared(tmp_path, "mj_bench_video") / "mj_bench_video" / "pairs.csv")
    assert len(table) == 11  # four verdicts of three pairs, less one that was hard to judge, and nothing discarded
    labels = {aspect: [row["label"] for row in table if row["aspect"] == aspect] for aspect in ("Overall", "Temporal")}
    assert labels == {"Overall": ["A", "tie", "B"], "Temporal": ["tie", "tie", "tie"]}
    assert {row["share"] for row in table} == {""}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_trains_to_a_checkpoint_with_its_card(name, tmp_path):
    """As its own file says, but small, from random weights and for two steps: this has a CPU."""
    pytest.importorskip("accelerate")
    work = prepared(tmp_path, name)
    settings = yaml.safe_load((work / "train.yaml").read_text())
    assert settings["start"]["kind"] == "imagenet"
    del settings["start"]
    settings["model"] = TINY_MODEL
    settings["data"] |= {"workers": 0, "cache": "cache", "near_duplicates": 0, "validation_share": 0.3}
    if name == "videofeedback":  # of one content
        settings["data"]["validation_share"] = 0
    settings["training"] = {"steps": 2, "batch_size": 2, "device": "cpu", "learning_rate": 1e-3}
    (work / "train.yaml").write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "dover_eval", "train", str(work / "train.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    checkpoint = work / "checkpoint"
    card = (checkpoint / "README.md").read_text()
    assert "license: apache-2.0" in card
    assert settings["card"]["notes"].split("\n")[0] in card
    scorer = VideoScorer(DOVERModel.from_pretrained(checkpoint), device="cpu")
    assert scorer.score(CLIPS / "star_clean.mp4", STAR).ok


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipes_settings_are_understood_as_they_stand(name, tmp_path):
    settings = pytest.importorskip("dover_eval.training.settings")
    work = prepared(tmp_path, name)
    run = settings.TrainSettings.load(work / "train.yaml")
    assert run.start.weights == "timm/convnext_tiny.fb_in1k"
    assert run.data.train[0].unusable == "skip"
    assert Path(run.data.train[0].table).is_file()
    assert Path(run.data.train[0].videos).is_dir()
    fresh = recipe(name, "--work", work, "--prepare", "--fresh")
    assert fresh.returncode == 0, fresh.stderr
    assert settings.TrainSettings.load(work / "train.yaml").start.kind == "fresh"


class Hub(BaseHTTPRequestHandler):
    """The hub, of data sets in the folder `server.root`; files named in `server.missing` are an error of its own."""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/datasets/[^/]+/([^/]+)(/revision/[^/]+|/tree/[^/]+)?", path):
            folder = self.server.root / found[1]
            files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
            tree = [{"type": "file", "path": n, "size": p.stat().st_size, "oid": "b" * 40} for n, p in files.items()]
            told = {"id": f"x/{found[1]}", "sha": "a" * 40, "siblings": [{"rfilename": name} for name in files]}
            body = tree if "/tree/" in path else told
            self.answer(200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        elif found := re.fullmatch(r"/datasets/[^/]+/([^/]+)/resolve/[^/]+/(.*)", path):
            body = (self.server.root / found[1] / found[2]).read_bytes()
            status = 403 if Path(found[2]).name in self.server.missing else 200
            self.answer(status, body, {"ETag": f'"{hash(path) % 10**10}"', "X-Repo-Commit": "a" * 40})
        else:
            self.answer(404, b"", {})

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_data_set_is_fetched_and_a_fetch_that_was_cut_off_goes_on(tmp_path):
    videofeedback(tmp_path / "hub")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.root, server.missing = tmp_path / "hub", {"train-00000-of-00002.parquet"}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "NO_PROXY": "*",
    }
    run = lambda: recipe("videofeedback", "--work", tmp_path / "work", "--prepare", **environment)
    try:
        cut = run()
        assert cut.returncode == 1
        assert "\nexamples.recipes: " in "\n" + cut.stderr
        assert "Traceback" not in cut.stderr
        server.missing = set()
        done = run()
        assert done.returncode == 0, done.stderr
    finally:
        server.shutdown()
        server.server_close()
    table = rows(tmp_path / "work" / "videofeedback" / "ratings.csv")
    videos = tmp_path / "work" / "videofeedback" / "source" / "VideoFeedback-videos-mp4"
    assert table
    assert all((videos / row["video_name"]).is_file() for row in table)


def test_a_source_is_a_folder_of_a_recipe_that_is_asked_for_and_stays_the_same(tmp_path):
    rapidata(tmp_path / "rapidata")
    for wrong in (f"rapidata={tmp_path / 'nowhere'}", f"rapidatas={tmp_path}", "rapidata"):
        done = recipe("rapidata", "--work", tmp_path / "work", "--prepare", "--source", wrong)
        assert done.returncode == 2
        assert f"--source {wrong}: expected a recipe that is asked for, and a folder" in done.stderr
    work = prepared(tmp_path / "again", "rapidata")
    done = recipe("rapidata", "--work", work, "--prepare", "--source", f"rapidata={tmp_path / 'rapidata'}")
    assert done.returncode == 2
    assert "is another folder; name another --work" in done.stderr


def test_another_layout_is_refused_with_what_was_found(tmp_path):
    from examples.recipes import datapoint as converter

    rapidata(tmp_path / "rapidata")
    file = next((tmp_path / "rapidata").rglob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(table.rename_columns([name.replace("Coherence", "Style") for name in table.column_names]), file)
    done = recipe("rapidata", "--work", tmp_path / "work", "--source", f"rapidata={tmp_path / 'rapidata'}")
    assert done.returncode == 1
    assert "weighted_results1_Coherence, weighted_results2_Coherence not in" in done.stderr
    assert "weighted_results1_Style" in done.stderr
    with pytest.raises(SchemaError, match="expected a GIF or an MP4, found bytes that begin with b'RIFF"):
        converter._write_clip(b"RIFF....WEBP", "video1", tmp_path)
