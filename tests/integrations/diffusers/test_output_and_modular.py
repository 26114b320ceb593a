"""Pipelines that take no callback: their output scored afterwards, or a block within their loop."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.wan.before_denoise import WanPrepareLatentsStep, WanSetTimestepsStep
from diffusers.modular_pipelines.wan.decoders import WanVaeDecoderStep
from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep
from dover_integrations.diffusers import DoverCallback, DoverScoreStep, insert_score_step, score_pipeline_output

from dover_eval import VideoScorer
from tests.integrations.diffusers.test_callback import Judge

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


def modular_wan(tiny: Any) -> tuple[Any, SequentialPipelineBlocks, dict[str, Any]]:
    """(parts of the tiny Wan pipeline, modular blocks from embeddings to video, their inputs)."""
    pipeline = tiny("wan_unipc")
    blocks = SequentialPipelineBlocks.from_blocks_dict(
        {
            "timesteps": WanSetTimestepsStep,
            "latents": WanPrepareLatentsStep,
            "denoise": WanDenoiseStep,
            "decode": WanVaeDecoderStep,
        }
    )
    inputs = {"num_inference_steps": 4, "height": 16, "width": 16, "num_frames": 9, "batch_size": 1}
    inputs |= {"dtype": torch.float32, "output_type": "pt"} | pipeline.per_prompt
    return pipeline.pipe, blocks, inputs


def run_modular(pipe: Any, blocks: SequentialPipelineBlocks, inputs: dict[str, Any]) -> torch.Tensor:
    modular = blocks.init_pipeline()
    modular.update_components(
        transformer=pipe.transformer,
        vae=pipe.vae,
        scheduler=pipe.scheduler,
        guider=diffusers.ClassifierFreeGuidance(3.0),
    )
    return modular(**inputs, generator=torch.Generator().manual_seed(0)).values["videos"]


def test_a_block_in_a_modular_loop_scores_and_changes_nothing(tiny: Any) -> None:
    pipe, blocks, inputs = modular_wan(tiny)
    plain = run_modular(pipe, blocks, inputs)
    judge = Judge()
    callback = DoverCallback(judge, PROMPT, every=2)
    pipe, blocks, inputs = modular_wan(tiny)
    insert_score_step(blocks, DoverScoreStep(callback))
    watched = run_modular(pipe, blocks, inputs)
    assert torch.equal(plain, watched)
    assert [(step.step, step.obtained) for step in callback.history] == [(1, "scheduler"), (3, "final latents")]
    assert torch.allclose(judge.seen[-1], watched, atol=1e-5)
    assert not torch.allclose(judge.seen[0], watched, atol=1e-2)


def test_it_finds_loops_within_loops_of_blocks(tiny: Any) -> None:
    outer = SequentialPipelineBlocks.from_blocks_dict({"inner": modular_wan(tiny)[1]})
    insert_score_step(outer, DoverScoreStep(DoverCallback(Judge(), PROMPT)))
    loop = outer.sub_blocks["inner"].sub_blocks["denoise"]
    assert list(loop.sub_blocks) == ["before_denoiser", "denoiser", "after_denoiser", "dover_score"]


def test_blocks_without_a_loop_are_an_error() -> None:
    class NoLoop(ModularPipelineBlocks):
        pass

    with pytest.raises(ValueError, match="no denoising loop"):
        insert_score_step(NoLoop(), DoverScoreStep(DoverCallback(Judge(), PROMPT)))


def test_a_modular_loop_cannot_be_stopped() -> None:
    with pytest.raises(ValueError, match="leave stop_below out"):
        DoverScoreStep(DoverCallback(Judge(), PROMPT, every=1, stop_below=2.0))
