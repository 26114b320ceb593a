"""`DoverScoreStep`: the callback as a block, for modular pipelines, which take no callbacks.

>>> blocks = WanBlocks()
>>> callback = DoverCallback(scorer, prompt, every=10)
>>> insert_score_step(blocks, DoverScoreStep(callback))
>>> pipe = blocks.init_pipeline(repository)
>>> pipe.load_components()
>>> video = pipe(prompt=prompt, output="videos")
>>> callback.scores.overall
"""

from __future__ import annotations

from typing import Any

from diffusers.modular_pipelines import ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline import LoopSequentialPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam

from dover_integrations.diffusers.callback import DoverCallback


class DoverScoreStep(ModularPipelineBlocks):
    """A block of the denoising loop that hands each step to a `DoverCallback`; it belongs after the scheduler's step.

    Raises:
        ValueError: the callback has `stop_below`: a modular loop cannot be stopped.
    """

    def __init__(self, callback: DoverCallback) -> None:
        super().__init__()
        if callback.stop_below is not None:
            raise ValueError("a modular pipeline's loop cannot be stopped: leave stop_below out")
        self.callback = callback

    @property
    def description(self) -> str:
        return "Scores the video's quality while it is being sampled; changes nothing."

    @property
    def inputs(self) -> list[InputParam]:
        # Reference images lie in front of the video's latents until the loop is over.
        references = InputParam("num_reference_images", default=0)
        return [InputParam("latents", required=True), InputParam("timesteps", required=True), references]

    def __call__(self, components: Any, block_state: Any, i: int, t: Any) -> tuple[Any, Any]:
        self.callback.observe(
            components, i, t, block_state.latents, call=block_state.as_dict(), step_count=len(block_state.timesteps)
        )
        return components, block_state

    def __deepcopy__(self, memo: dict[int, Any]) -> DoverScoreStep:
        """Pipelines copy their blocks; the copy must fill the history that the user looks at."""
        return type(self)(self.callback)


def insert_score_step(blocks: ModularPipelineBlocks, step: DoverScoreStep) -> None:
    """Put `step` behind the scheduler's step of every denoising loop in `blocks`.

    Raises:
        ValueError: there is no loop with a block called "after_denoiser".
    """
    if not _insert(blocks, step):
        raise ValueError(f'no denoising loop with an "after_denoiser" in {type(blocks).__name__}')


def _insert(blocks: Any, step: DoverScoreStep) -> int:
    children: Any = getattr(blocks, "sub_blocks", {})
    if isinstance(blocks, LoopSequentialPipelineBlocks) and "after_denoiser" in children:
        children.insert("dover_score", step, list(children).index("after_denoiser") + 1)
        return 1
    return sum(_insert(child, step) for child in list(children.values()))
