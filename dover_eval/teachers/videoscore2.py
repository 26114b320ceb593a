"""VideoScore2 (He et al., "VideoScore2: Think before You Score in Generative Video Evaluation", 2025; Apache-2.0).

A Qwen2.5-VL that writes its reasons and three whole numbers from 1 to 5. Its question is read from its own script in a
clone of the repository, because the numbers belong to that wording.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from string import Template
from typing import Any, ClassVar

from dover_eval.distillation import Linear, Scale, TeacherError, requires
from dover_eval.teachers.local import checkpoint_folder, use_clone, weights_digest

WHERE = "https://github.com/TIGER-AI-Lab/VideoScore2"
SCRIPT = "vs2_inference.py"
DIMENSIONS = {
    "visual quality": "Traditional",
    "text-to-video alignment": "Alignment",
    "physical/common-sense consistency": "Temporal",
}


class VideoScore2:
    """Traditional, Alignment and Temporal, from its visual quality, alignment and physical consistency.

    It answers greedily: with its script's sampling at a temperature of 0.7 one clip gets another answer every time.
    An answer without all three numbers is an error.

    Args:
        root: a clone of the repository.
        checkpoint: a folder, or a repository on the hub.
        fps: frames a second that it sees. max_new_tokens: of its answer.
        device: of the model.
    """

    scales: ClassVar[dict[str, Scale]] = dict.fromkeys(DIMENSIONS.values(), Linear(1.0, 5.0))

    def __init__(
        self,
        root: str,
        checkpoint: str = "TIGER-Lab/VideoScore2",
        fps: float = 2.0,
        max_new_tokens: int = 1024,
        device: str = "cuda",
    ) -> None:
        self._question = read_question(use_clone(root, [SCRIPT], WHERE) / SCRIPT)
        with requires("pip install qwen-vl-utils accelerate", "Apache-2.0"):
            from qwen_vl_utils import process_vision_info  # type: ignore[import-not-found]
            from transformers import AutoModelForImageTextToText, AutoProcessor
        folder = checkpoint_folder(checkpoint)
        self._look = process_vision_info
        # transformers 4 up to 4.55 knows `dtype` by this name alone.
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, torch_dtype="auto")
        self._model = model.to(device).eval()
        self._processor: Any = AutoProcessor.from_pretrained(folder)
        self._fps, self._length = fps, max_new_tokens
        self.identity = {"weights": weights_digest(folder), "question": self._question.template}

    def __call__(self, path: str, prompt: str) -> dict[str, float]:
        content = [
            {"type": "video", "video": path, "fps": self._fps},
            {"type": "text", "text": self._question.substitute(t2v_prompt=prompt)},
        ]
        messages = [{"role": "user", "content": content}]
        text = self._processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        images, videos = self._look(messages)
        inputs = self._processor(
            text=[text], images=images, videos=videos, fps=self._fps, padding=True, return_tensors="pt"
        ).to(self._model.device)
        told = self._model.generate(**inputs, max_new_tokens=self._length, do_sample=False)
        answer = told[:, inputs["input_ids"].shape[1] :]
        return read_answer(self._processor.batch_decode(answer, skip_special_tokens=True)[0])


def read_question(script: Path) -> Template:
    """The text that the script gives to `string.Template`. Raises TeacherError where there is none with a prompt."""
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "Template"
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and "$t2v_prompt" in str(node.args[0].value)
        ):
            return Template(str(node.args[0].value))
    raise TeacherError(f"{script} has no Template with $t2v_prompt: expected the script of {WHERE}")


def read_answer(answer: str) -> dict[str, float]:
    """Its three numbers; the last of each, as it may name them while it thinks."""
    scores = {}
    for dimension, ours in DIMENSIONS.items():
        found = re.findall(re.escape(dimension) + r"\W*?:\W*?(\d+)", answer, re.IGNORECASE)
        if not found:
            raise ValueError(f"no number for {dimension} in the answer {' '.join(answer.split())[-200:]!r}")
        scores[ours] = float(found[-1])
    return scores
