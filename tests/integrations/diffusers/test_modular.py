"""Modular pipelines take no callback, but a block within their loop."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from dover_integrations.diffusers import DoverCallback, DoverScoreStep, insert_score_step
from packaging.version import Version
from PIL import Image

from tests.integrations.diffusers.test_callback import Judge
from tests.integrations.diffusers.tiny import TEXT, wan_size, wan_vae

if Version(diffusers.__version__) < Version("0.37"):
    pytest.skip("Wan's blocks have had their names since diffusers 0.37", allow_module_level=True)

from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
from diffusers.modular_pipelines.wan.before_denoise import WanPrepareLatentsStep, WanSetTimestepsStep
from diffusers.modular_pipelines.wan.decoders import WanVaeDecoderStep
from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep

PROMPT = "a red bicycle in the rain"


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


def test_a_pipeline_without_a_decoder_says_so_at_its_first_step(tiny: Any) -> None:
    pipe, blocks, inputs = modular_wan(tiny)
    del blocks.sub_blocks["decode"]
    insert_score_step(blocks, DoverScoreStep(DoverCallback(Judge(), PROMPT, every=2)))
    modular = blocks.init_pipeline()
    modular.update_components(
        transformer=pipe.transformer, scheduler=pipe.scheduler, guider=diffusers.ClassifierFreeGuidance(3.0)
    )
    del inputs["output_type"]
    with pytest.raises(ValueError, match="has no vae to decode latents with: add it, or pass decode="):
        modular(**inputs)


@pytest.mark.parametrize("references", [0, 1])
def test_reference_images_are_no_part_of_the_video(references: int) -> None:
    vace = pytest.importorskip("diffusers.modular_pipelines.wan.modular_blocks_wan_vace")
    blocks = vace.Wan22VaceBlocks()
    del blocks.sub_blocks["text_encoder"]
    judge = Judge()
    insert_score_step(blocks, DoverScoreStep(DoverCallback(judge, PROMPT, every=2)))
    torch.manual_seed(0)
    transformers = (
        diffusers.WanVACETransformer3DModel(**wan_size(), vace_layers=[0], vace_in_channels=96).eval() for _ in range(2)
    )
    modular = blocks.init_pipeline()
    modular.update_components(
        vae=wan_vae().eval(),
        transformer=next(transformers),
        transformer_2=next(transformers),
        scheduler=diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True),
        guider=diffusers.ClassifierFreeGuidance(3.0),
        guider_2=diffusers.ClassifierFreeGuidance(3.0),
    )
    inputs: dict[str, Any] = {"num_inference_steps": 4, "height": 32, "width": 32, "num_frames": 9, "output_type": "pt"}
    if references:
        inputs["reference_images"] = [Image.new("RGB", (32, 32), "red")]
    video = modular(**inputs, **TEXT, generator=torch.Generator().manual_seed(0)).values["videos"]
    assert judge.seen[0].shape == judge.seen[-1].shape == video.shape
    assert torch.allclose(judge.seen[-1], video, atol=1e-5)


def test_a_modular_loop_cannot_be_stopped() -> None:
    with pytest.raises(ValueError, match="leave stop_below out"):
        DoverScoreStep(DoverCallback(Judge(), PROMPT, every=1, stop_below=2.0))
