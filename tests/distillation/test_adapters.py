"""Adapters of teachers that users name.

CLIP and SigLIP run for real, small and untrained. The others cannot be installed here; they meet stand-ins with the
signatures of the true ones, whose source each names, in worker processes as users would run them.
"""

from __future__ import annotations

import csv
import json
import sys
import types
from pathlib import Path

import pytest
import torch

from dover_eval.distillation import TeacherError, label
from dover_eval.video.decode import decode_clip

CLIPS = Path(__file__).parents[2] / "examples" / "clips"
NAMES = ("heart_clean.mp4", "star_noisy.mp4")
PROMPT = "a yellow heart"


def verdicts(teacher: str, folder: Path, **options: object) -> list[dict[str, str]]:
    """The rows of two clips, labelled in a worker process."""
    clips = [(name, CLIPS / name, PROMPT) for name in NAMES]
    done = label(f"dover_eval.teachers.{teacher}", clips, folder / "table.csv", options=options)
    assert not done.errors, done.errors
    with (folder / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# CLIP and SigLIP


def bpe(folder: Path) -> tuple[Path, Path]:
    """CLIP's byte-level vocabulary without a single merge: every character is a token."""
    from transformers.models.clip.tokenization_clip import CLIPTokenizer  # noqa: F401  (says which one is meant)

    letters = [chr(c) for c in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder / "vocab.json", folder / "merges.txt"


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory) -> str:
    from transformers import (
        CLIPConfig,
        CLIPImageProcessor,
        CLIPModel,
        CLIPProcessor,
        CLIPTextConfig,
        CLIPTokenizer,
        CLIPVisionConfig,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    vocab, merges = bpe(folder)
    tokenizer = CLIPTokenizer(str(vocab), str(merges), model_max_length=20)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = CLIPTextConfig(vocab_size=len(tokenizer), max_position_embeddings=20, eos_token_id=189, **size)
    vision = CLIPVisionConfig(image_size=32, patch_size=8, **size)
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=16)
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def siglip_folder(tmp_path_factory) -> str:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import (
        PreTrainedTokenizerFast,
        SiglipConfig,
        SiglipImageProcessor,
        SiglipModel,
        SiglipProcessor,
        SiglipTextConfig,
        SiglipVisionConfig,
    )

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("siglip")
    words = Tokenizer(models.WordLevel({"</s>": 0, "<unk>": 1, "a": 2, "yellow": 3, "heart": 4}, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )  # which does not say how long a text the model reads, as some do not
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = SiglipTextConfig(vocab_size=5, max_position_embeddings=12, **size)
    vision = SiglipVisionConfig(image_size=32, patch_size=8, **size)
    SiglipModel(SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())).save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": 32, "width": 32})
    SiglipProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_frames_are_compared_with_the_prompt(kind, request, tmp_path):
    """Against the model itself, called by hand on the same frames."""
    from transformers import AutoModel, AutoProcessor

    folder = request.getfixturevalue(f"{kind}_folder")
    rows = verdicts("clip:FrameSimilarity", tmp_path, checkpoint=folder, frames=3)
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    for row in rows:
        frames = [frame.permute(1, 2, 0).numpy() for frame in decode_clip(CLIPS / row["video_name"], 3).frames]
        length = model.config.text_config.max_position_embeddings
        inputs = processor(
            text=[PROMPT], images=frames, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**inputs).logits_per_image[:, 0]
        own = 2.5 * (logits / model.logit_scale.exp()).clamp(min=0) if kind == "clip" else logits.sigmoid()
        assert float(row["Alignment_raw"]) == pytest.approx(own.mean().item(), abs=1e-5)
        assert float(row["Alignment_MOS"]) == pytest.approx(1 + 4 * own.mean().item(), abs=1e-4)
    assert rows[0]["Alignment_raw"] != rows[1]["Alignment_raw"]


def test_only_clip_and_siglip_compare_frames(tmp_path):
    from transformers import BertConfig

    from dover_eval.teachers.clip import FrameSimilarity

    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(TeacherError, match="is a bert, expected clip, siglip, siglip2"):
        FrameSimilarity(str(tmp_path))
    with pytest.raises(TeacherError, match="no folder no/such-repository-here, and no repository of that name"):
        FrameSimilarity("no/such-repository-here")


# VideoAlign: KwaiVGI/VideoAlign, inference.py, commit 1140ffd

VIDEO_ALIGN = """
import torch


class VideoVLMRewardInference():
    def __init__(self, load_from_pretrained, load_from_pretrained_step=-1, device='cuda', dtype=torch.bfloat16):
        assert dtype is torch.float32
        self.device = device

    def reward(self, video_paths, prompts, fps=None, num_frames=None, max_pixels=None, use_norm=True):
        assert fps is None or num_frames is None, "fps and num_frames cannot be set at the same time."
        rewards = []
        for path, prompt in zip(video_paths, prompts):
            size = len(open(path, "rb").read())
            vq, mq, ta = size / 1e6, -float(fps), len(prompt) / 10
            rewards.append({'VQ': vq, 'MQ': mq, 'TA': ta, 'Overall': vq + mq + ta})
        return rewards
"""


def test_video_align_gives_four_unbounded_scores(tmp_path):
    clone, checkpoint = tmp_path / "VideoAlign", tmp_path / "checkpoint"
    clone.mkdir()
    checkpoint.mkdir()
    (clone / "inference.py").write_text(VIDEO_ALIGN)
    (checkpoint / "model.pth").write_bytes(b"weights")
    (checkpoint / "model_config.json").write_text('{"inference_config": {"VQ_mean": 3.6, "VQ_std": 2.2}}')
    options = {"root": str(clone), "checkpoint": str(checkpoint), "fps": 8, "device": "cpu", "dtype": "float32"}
    for row in verdicts("videoalign:VideoReward", tmp_path, **options):
        size = (CLIPS / row["video_name"]).stat().st_size / 1e6
        raw = {name: float(row[f"{name}_raw"]) for name in ("Traditional", "Temporal", "Alignment", "Overall")}
        assert raw == pytest.approx({"Traditional": size, "Temporal": -8, "Alignment": 1.4, "Overall": size - 6.6})
        assert float(row["Alignment_MOS"]) == pytest.approx(1 + 4 / (1 + 2.718281828**-1.4), abs=1e-5)
        assert row["Aesthetic_MOS"] == ""
    (checkpoint / "model_config.json").write_text("{}")
    with pytest.raises(TeacherError, match="expected means and deviations under inference_config"):
        verdicts("videoalign:VideoReward", tmp_path, **options)


# VQAScore: t2v_metrics 3.0 on PyPI, t2v_metrics/score.py and vqascore.py

T2V_METRICS = """
import os

import torch


class VQAScore(torch.nn.Module):
    def __init__(self, model, device='cuda', cache_dir="./hf_cache/", **kwargs):
        super().__init__()
        assert model in ["clip-flant5-xl"] and not kwargs
        self.device = device

    def forward(self, images=None, texts=None, num_frames=8, **kwargs):
        assert not kwargs
        scores = torch.zeros(len(images), len(texts)).to(self.device)
        for i, video in enumerate(images):
            output_dir = f"temp_{os.path.basename(video)}"  # as the true one, in the working folder
            os.mkdir(output_dir)
            scores[i] = num_frames / 10 if os.path.getsize(video) else 0
            os.rmdir(output_dir)
        return scores
"""


def test_vqascore_gives_a_probability(tmp_path, monkeypatch):
    package = tmp_path / "packages" / "t2v_metrics"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(T2V_METRICS)
    monkeypatch.syspath_prepend(str(package.parent))  # workers have it too
    rows = verdicts("vqascore:VQAScore", tmp_path, model="clip-flant5-xl", num_frames=4, device="cpu")
    assert [float(row["Alignment_MOS"]) for row in rows] == pytest.approx([2.6, 2.6])
    (tmp_path / "clip.webm").write_bytes(b"video")
    done = label(
        "dover_eval.teachers.vqascore:VQAScore",
        [("clip.webm", tmp_path / "clip.webm", PROMPT)],
        tmp_path / "webm.csv",
        options={"model": "clip-flant5-xl", "device": "cpu"},
    )
    assert done.errors == {("clip.webm", PROMPT): "t2v_metrics reads .mp4, .avi, .mov, .mkv, not clip.webm"}


# VideoScore2: TIGER-AI-Lab/VideoScore2, vs2_inference.py, commit e6abe26

VIDEO_SCORE2 = '''
from string import Template

def main(MODEL_NAME, video_path, t2v_prompt):
    VS2_QUERY_TEMPLATE = Template("""
    Judge it. Video prompt: $t2v_prompt
    """)
'''


class Qwen:
    """What `vs2_inference.py` uses of a Qwen2.5-VL and its processor; it answers as it is told to."""

    answer = ""
    device = torch.device("cpu")
    asked: dict

    @classmethod
    def from_pretrained(cls, folder, **options):
        assert (Path(folder) / "model.safetensors").exists()
        return cls()

    def to(self, device):
        return self

    def eval(self):
        return self

    def apply_chat_template(self, messages, tokenize, add_generation_prompt):
        assert not tokenize
        assert add_generation_prompt
        (video, text) = messages[0]["content"]
        Qwen.asked = {"video": video, "text": text["text"]}
        return text["text"]

    def __call__(self, text, images, videos, fps, padding, return_tensors):
        from transformers import BatchFeature

        assert (images, videos, padding, return_tensors) == (None, ["frames"], True, "pt")
        return BatchFeature({"input_ids": torch.zeros(1, 3, dtype=torch.long)})

    def generate(self, input_ids, max_new_tokens, do_sample):
        assert not do_sample  # or one clip would have another verdict every time
        return torch.cat([input_ids, torch.ones(1, 2, dtype=torch.long)], dim=1)

    def batch_decode(self, ids, skip_special_tokens):
        assert ids.tolist() == [[1, 1]]  # what it said, without what it was asked
        return [self.answer]


@pytest.fixture
def video_score2(tmp_path, monkeypatch):
    import transformers

    from dover_eval.teachers.videoscore2 import VideoScore2

    (tmp_path / "vs2_inference.py").write_text(VIDEO_SCORE2)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(sys, "path", [*sys.path])
    utils = types.SimpleNamespace(process_vision_info=lambda messages: (None, ["frames"]))
    monkeypatch.setitem(sys.modules, "qwen_vl_utils", utils)
    monkeypatch.setattr(transformers, "AutoModelForImageTextToText", Qwen)
    monkeypatch.setattr(transformers, "AutoProcessor", Qwen)
    return VideoScore2(str(tmp_path), checkpoint=str(tmp_path), fps=4.0, device="cpu")


def test_video_score2_is_asked_its_own_question(video_score2, monkeypatch):
    answer = "I see:\nvisual quality: 2 or so.\n<answer>(1) Visual quality: 4;\n(2) text-to-video alignment: 3,\n"
    monkeypatch.setattr(Qwen, "answer", answer + "(3) physical/common-sense consistency: 5</answer>")
    assert video_score2("/clip.mp4", PROMPT) == {"Traditional": 4, "Alignment": 3, "Temporal": 5}
    assert Qwen.asked["text"].strip() == f"Judge it. Video prompt: {PROMPT}"
    assert Qwen.asked["video"] == {"type": "video", "video": "/clip.mp4", "fps": 4.0}


def test_an_answer_without_numbers_is_no_verdict(video_score2, monkeypatch):
    monkeypatch.setattr(Qwen, "answer", "visual quality: 4; I cannot judge the rest")
    with pytest.raises(ValueError, match="no number for text-to-video alignment in the answer 'visual quality: 4;"):
        video_score2("/clip.mp4", PROMPT)


# DOVER: VQAssessment/DOVER, evaluate_one_video.py, dover/models/evaluator.py and dover/datasets/dover_datasets.py

DOVER_DATASETS = """
import numpy as np
import torch


class UnifiedFrameSampler:
    def __init__(self, fsize_t, fragments_t, frame_interval=1, num_clips=1, drop_rate=0.0):
        self.taken = fsize_t * fragments_t * num_clips

    def __call__(self, num_frames, train=False, start_index=0):
        return np.arange(self.taken) % num_frames


def spatial_temporal_view_decomposition(video_path, sample_types, samplers, is_train=False, augment=False):
    with open(video_path, "rb") as file:
        level = len(file.read()) % 251
    inds = {name: samplers[name](50, is_train) for name in samplers}
    views = {name: torch.full((3, len(inds[name]), 8, 8), float(level)) for name in sample_types}
    return {name: view + torch.randint(0, 9, (1,)) for name, view in views.items()}, inds  # fragments at random
"""
DOVER_MODELS = """
import torch


class DOVER(torch.nn.Module):
    def __init__(self, backbone, divide_head=False):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.zeros(1))

    def forward(self, vclips, inference=True, return_pooled_feats=False, reduce_scores=False, pooled=False, **kwargs):
        assert vclips["technical"].shape == (3, 3, 4, 8, 8) and vclips["aesthetic"].shape == (1, 3, 4, 8, 8)
        with torch.no_grad():
            return [self.gain * vclips[key].mean(dim=1, keepdim=True) for key in vclips]
"""
DOVER_OPTIONS = """
data:
  val-l1080p:
    args:
      sample_types:
        technical: {clip_len: 4, frame_interval: 2, num_clips: 3}
        aesthetic: {clip_len: 4, frame_interval: 2, t_frag: 4, num_clips: 1}
model: {args: {backbone: {technical: {type: swin_tiny_grpb}}, divide_head: true}}
test_load_path: ./pretrained_weights/DOVER.pth
"""


def test_dover_gives_both_branches_and_their_fusion_and_the_same_every_time(tmp_path):
    clone = tmp_path / "DOVER"
    for name, content in (("datasets", DOVER_DATASETS), ("models", DOVER_MODELS)):
        (clone / "dover" / name).mkdir(parents=True)
        (clone / "dover" / name / "__init__.py").write_text(content)
    (clone / "dover" / "__init__.py").write_text("")
    (clone / "dover.yml").write_text(DOVER_OPTIONS)
    (clone / "pretrained_weights").mkdir()
    torch.save({"gain": torch.tensor([0.1])}, clone / "pretrained_weights" / "DOVER.pth")
    rows = verdicts("dover:OfficialDOVER", tmp_path, root=str(clone))
    again = tmp_path / "again"
    again.mkdir()
    assert verdicts("dover:OfficialDOVER", again, root=str(clone)) == rows
    for row in rows:
        technical, aesthetic = float(row["Traditional_raw"]), float(row["Aesthetic_raw"])
        fused = 0.6104 * (technical - 0.1107) / 0.07355 + 0.3896 * (aesthetic + 0.08285) / 0.03774
        assert float(row["Overall_raw"]) == pytest.approx(fused)
    assert rows[0]["Traditional_raw"] != rows[1]["Traditional_raw"]


# What is not there


@pytest.mark.parametrize(
    ("teacher", "options", "reason"),
    [
        (
            "vqascore:VQAScore",
            {},
            r"No module named 't2v_metrics'\. Install it with: pip install t2v-metrics\.",
        ),
        ("videoalign:VideoReward", {"root": "x", "checkpoint": "x"}, "expected a clone of https://github.com/KwaiVGI"),
        (
            "videoscore2:VideoScore2",
            {"root": "x"},
            "has no vs2_inference.py: expected a clone of https://github.com/TIGER",
        ),
        ("dover:OfficialDOVER", {"root": "x"}, "has no dover.yml, dover: expected a clone of https://github.com/VQA"),
    ],
)
def test_an_absent_package_is_said_with_the_way_to_it(tmp_path, teacher, options, reason):
    clips = [("heart_clean.mp4", CLIPS / "heart_clean.mp4", PROMPT)]
    with pytest.raises(TeacherError, match=reason):
        label(f"dover_eval.teachers.{teacher}", clips, tmp_path / "table.csv", options=options)
    assert not (tmp_path / "table.csv").exists()
