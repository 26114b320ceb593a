"""Pipelines that take no callback: their output is scored afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from dover_integrations.diffusers import score_pipeline_output

from dover_eval import VideoScorer

PROMPT = "a red bicycle in the rain"


@pytest.mark.parametrize("kind", ["pt", "np", "pil"])
@pytest.mark.parametrize("return_dict", [True, False], ids=["output", "tuple"])
def test_any_kind_of_output_gets_its_scores(tiny: Any, small_scorer: VideoScorer, kind: str, return_dict: bool) -> None:
    pipeline = tiny("animatediff")
    output = pipeline.pipe(**pipeline.kwargs(2, output_type=kind, return_dict=return_dict))
    scores = score_pipeline_output(output, ["a cat", "a dog"], small_scorer)
    frames = pipeline(2)
    if kind == "pil":
        frames = (frames * 255).round().to(torch.uint8)
    expected = small_scorer.score(frames, ["a cat", "a dog"], layout="BTCHW")
    assert scores.prompts == ("a cat", "a dog")
    assert torch.allclose(scores.values, expected.values, atol=1e-5)


def test_pictures_in_one_list_are_one_clip(tiny: Any, small_scorer: VideoScorer) -> None:
    pipeline = tiny("animatediff")
    frames = pipeline.pipe(**pipeline.kwargs(1, output_type="pil")).frames
    whole, first = (score_pipeline_output(found, "a cat", small_scorer) for found in (frames, frames[0]))
    assert torch.equal(whole.values, first.values)


def test_the_frames_themselves_will_do_and_prompts_repeat(tiny: Any, small_scorer: VideoScorer) -> None:
    frames = tiny("wan")(num_videos_per_prompt=2)
    expected = score_pipeline_output(frames, PROMPT, small_scorer)
    assert expected.prompts == (PROMPT, PROMPT)
    for others in (list(frames), [clip.movedim(1, -1).numpy() for clip in frames]):
        assert torch.allclose(score_pipeline_output(others, PROMPT, small_scorer).values, expected.values)


def test_hunyuan_video_15_takes_no_callback_but_its_output_is_scored(small_scorer: VideoScorer) -> None:
    from diffusers.pipelines.hunyuan_video1_5.pipeline_output import HunyuanVideo15PipelineOutput

    output = HunyuanVideo15PipelineOutput(frames=np.random.default_rng(0).random((1, 5, 16, 16, 3), dtype=np.float32))
    assert score_pipeline_output(output, PROMPT, small_scorer).ok


def test_what_holds_no_frames_is_refused(tiny: Any, small_scorer: VideoScorer) -> None:
    with pytest.raises(ValueError, match="expected float in 0-1"):
        score_pipeline_output(tiny("wan")(output_type="latent"), PROMPT, small_scorer)
    with pytest.raises(TypeError, match="got dict"):
        score_pipeline_output({}, PROMPT, small_scorer)
    with pytest.raises(ValueError, match="prompts for 1 samples"):
        score_pipeline_output(tiny("wan")(), ["a", "b"], small_scorer)
