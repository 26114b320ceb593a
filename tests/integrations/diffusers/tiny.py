"""Pipelines of diffusers, real but for their size: random weights, no text encoders, no download.

Each builder gives a `Tiny`: the pipeline and the arguments of a call, embeddings in place of prompts. Weights are drawn
a little larger than by default, so that denoisers say something and scores of different seeds differ.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

STEPS = 4


@dataclass
class Tiny:
    pipe: Any
    arguments: dict[str, Any]
    per_prompt: dict[str, torch.Tensor] = field(default_factory=dict)  # of one prompt
    count_argument: str = "num_videos_per_prompt"

    def kwargs(self, prompts: int = 1, **changes: Any) -> dict[str, Any]:
        """Arguments of a call with a fresh generator."""
        repeated = {name: tensor.repeat_interleave(prompts, 0) for name, tensor in self.per_prompt.items()}
        common = {"num_inference_steps": STEPS, "output_type": "pt"}
        return common | self.arguments | repeated | {"generator": torch.Generator().manual_seed(0)} | changes

    def __call__(self, prompts: int = 1, **changes: Any) -> torch.Tensor:
        """Frames (B,T,3,H,W)."""
        return self.pipe(**self.kwargs(prompts, **changes)).frames


def embeds(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def finish(pipe: Any) -> Any:
    torch.manual_seed(0)
    for name in ("transformer", "unet"):
        model = getattr(pipe, name, None)
        for parameter in [] if model is None else model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.15)
    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
    )


def wan_size() -> dict[str, Any]:
    return {
        "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 16,
        "out_channels": 16, "text_dim": 32, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 32,
    }  # fmt: skip


TEXT = {"prompt_embeds": embeds(1, 1, 8, 32), "negative_prompt_embeds": embeds(2, 1, 8, 32)}
SMALL = {"height": 16, "width": 16, "num_frames": 9, "guidance_scale": 3.0}


def wan(scheduler: Any = None) -> Tiny:
    scheduler = scheduler or diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    transformer = diffusers.WanTransformer3DModel(**wan_size())
    pipe = diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=scheduler, transformer=transformer
    )
    return Tiny(finish(pipe), SMALL, TEXT)


def wan_unipc() -> Tiny:
    return wan(
        diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    )


def wan_dpm() -> Tiny:
    return wan(
        diffusers.DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    )


def ltx(timestep_conditioning: bool = False) -> Tiny:
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        timestep_conditioning=timestep_conditioning,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, patch_size=1, patch_size_t=1, num_attention_heads=4, attention_head_dim=8,
        cross_attention_dim=32, num_layers=1, caption_channels=32,
    )  # fmt: skip
    pipe = diffusers.LTXPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )
    masks = {
        name: torch.ones(1, 8, dtype=torch.bool) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")
    }
    arguments = {"height": 32, "width": 64, "num_frames": 9, "guidance_scale": 3.0}
    if timestep_conditioning:
        arguments |= {"decode_timestep": 0.05, "decode_noise_scale": 0.025}
    return Tiny(finish(pipe), arguments, TEXT | masks)


def ltx_timestep() -> Tiny:
    return ltx(timestep_conditioning=True)


def cogvideox(scheduler: Any = None, patch_size_t: int | None = None) -> Tiny:
    frames = {} if patch_size_t is None else {"patch_size_t": patch_size_t, "patch_bias": False}
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4, attention_head_dim=8 if patch_size_t is None else 16, in_channels=4, out_channels=4,
        time_embed_dim=2, text_embed_dim=32, num_layers=1, sample_width=2, sample_height=2, sample_frames=9,
        patch_size=2, temporal_compression_ratio=4, max_text_seq_length=8,
        use_rotary_positional_embeddings=patch_size_t is not None, **frames,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4, up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4,
    )  # fmt: skip
    scheduler = scheduler or diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction")
    pipe = diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer, scheduler=scheduler
    )
    return Tiny(finish(pipe), SMALL, TEXT)


def cogvideox_15() -> Tiny:
    """With a temporal patch of two, and so with padding frames."""
    return cogvideox(patch_size_t=2)


def cogvideox_dpm() -> Tiny:
    return cogvideox(diffusers.CogVideoXDPMScheduler(prediction_type="v_prediction"))


def mochi() -> Tiny:
    transformer = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=2, pooled_projection_dim=16,
        in_channels=12, out_channels=None, qk_norm="rms_norm", text_embed_dim=32, time_embed_dim=4,
        activation_fn="swiglu", max_sequence_length=16,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=12, out_channels=3, encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32), layers_per_block=(1, 1, 1, 1, 1),
    )  # fmt: skip
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    pipe = diffusers.MochiPipeline(
        scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=transformer
    )
    masks = {
        name: torch.ones(1, 8, dtype=torch.bool) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")
    }
    return Tiny(finish(pipe), SMALL | {"num_frames": 7}, TEXT | masks)


def hunyuan_vae() -> Any:
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4,
        spatial_compression_ratio=8, temporal_compression_ratio=4, mid_block_add_attention=True,
    )  # fmt: skip


def hunyuan() -> Tiny:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=1, num_single_layers=1,
        num_refiner_layers=1, patch_size=1, patch_size_t=1, guidance_embeds=True, text_embed_dim=32,
        pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    pipe = diffusers.HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        vae=hunyuan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=None,
        tokenizer_2=None,
    )
    text = {
        "prompt_embeds": TEXT["prompt_embeds"],
        "pooled_prompt_embeds": embeds(3, 1, 8),
        "prompt_attention_mask": torch.ones(1, 8),
    }
    return Tiny(finish(pipe), SMALL, text)


def animatediff(scheduler: Any = None) -> Tiny:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(8, 8), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, norm_num_groups=2,
    )  # fmt: skip
    adapter = diffusers.MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=4
    )
    pipe = diffusers.AnimateDiffPipeline(
        vae=image_vae(), text_encoder=None, tokenizer=None, unet=unet, motion_adapter=adapter,
        scheduler=scheduler or diffusers.DDIMScheduler(beta_schedule="linear", clip_sample=False),
    )  # fmt: skip
    return Tiny(finish(pipe), {"height": 16, "width": 16, "num_frames": 4, "guidance_scale": 3.0}, TEXT)


def image_vae() -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, norm_num_groups=2,
    )  # fmt: skip


def latte() -> Tiny:
    transformer = diffusers.LatteTransformer3DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, attention_bias=True, activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000, video_length=4, norm_type="ada_norm_single",
        norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    pipe = diffusers.LattePipeline(
        tokenizer=None, text_encoder=None, vae=image_vae(), transformer=transformer,
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )  # fmt: skip
    arguments = {"height": 16, "width": 16, "video_length": 4, "guidance_scale": 3.0, "negative_prompt": None}
    return Tiny(
        finish(pipe), arguments | {"mask_feature": False, "clean_caption": False}, TEXT, "num_images_per_prompt"
    )


def allegro(scheduler: Any = None) -> Tiny:
    transformer = diffusers.AllegroTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, num_layers=1,
        cross_attention_dim=24, sample_width=8, sample_height=8, sample_frames=8, caption_channels=32,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4, up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2,
        temporal_compression_ratio=4, sample_size=16,
    )  # fmt: skip
    vae.enable_tiling()  # Allegro's VAE knows no other way to decode
    vae.kernel, vae.stride = (8, 16, 16), (4, 8, 8)  # tiles that fit a tiny video
    pipe = diffusers.AllegroPipeline(
        tokenizer=None, text_encoder=None, vae=vae, transformer=transformer,
        scheduler=scheduler or diffusers.DDIMScheduler(clip_sample=False),
    )  # fmt: skip
    masks = {name: torch.ones(1, 8) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    arguments = {"height": 16, "width": 32, "num_frames": 7, "guidance_scale": 3.0, "negative_prompt": None}
    return Tiny(finish(pipe), arguments | {"clean_caption": False}, TEXT | masks)


def allegro_ancestral() -> Tiny:
    """Its published scheduler, which adds noise in every step."""
    return allegro(diffusers.EulerAncestralDiscreteScheduler())
