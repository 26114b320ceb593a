"""For the examples: a Wan pipeline that fits a laptop and reads real prompts, and a scorer.

Its weights are random, so its videos are abstract art. Everything but the size is diffusers' own: swap it for
`WanPipeline.from_pretrained(...)`, and the rest of an example stays as it is.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from dover_eval import DOVERModel, VideoScorer

# A call that takes seconds on one core.
CALL = {"height": 48, "width": 64, "num_frames": 9, "num_inference_steps": 20, "guidance_scale": 4.0}


def tiny_wan() -> WanPipeline:
    """The pipeline, with random weights, always the same."""
    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=24,
        text_dim=32,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        rope_max_seq_len=64,
    )
    for parameter in transformer.parameters():
        if parameter.ndim > 1:  # strong enough for prompts and seeds to show
            torch.nn.init.normal_(parameter, std=0.15)
    text_encoder = UMT5EncoderModel(UMT5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4))
    pipe = WanPipeline(
        tokenizer=_byte_tokenizer(),
        text_encoder=text_encoder.eval(),
        transformer=transformer.eval(),
        vae=AutoencoderKLWan(base_dim=8, dim_mult=[1, 2, 2, 2], num_res_blocks=1).eval(),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def example_scorer(untrained: bool) -> VideoScorer:
    """The embedded scorer; or one with random weights, asked for by name, whose scores mean nothing."""
    if not untrained:
        return VideoScorer.from_pretrained()
    torch.manual_seed(0)
    return VideoScorer(DOVERModel(None, config="nano"))


def _byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every text, byte by byte, with no file to download."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
