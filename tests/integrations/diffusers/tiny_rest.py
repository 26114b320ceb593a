"""Tiny pipelines of the families beyond the eight in `tiny`: real but for their size, no download."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers.guiders import ClassifierFreeGuidance
from PIL import Image

from tests.integrations.diffusers.tiny import (
    SMALL,
    TEXT,
    Tiny,
    embeds,
    finish,
    hunyuan_vae,
    image_vae,
    wan_size,
    wan_vae,
)


def skyreels() -> Tiny:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    transformer = diffusers.SkyReelsV2Transformer3DModel(**wan_size())
    pipe = diffusers.SkyReelsV2Pipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=scheduler, transformer=transformer
    )
    return Tiny(finish(pipe), SMALL, TEXT)


def skyreels_forcing() -> Tiny:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    transformer = diffusers.SkyReelsV2Transformer3DModel(**wan_size(), inject_sample_info=False)
    pipe = diffusers.SkyReelsV2DiffusionForcingPipeline(
        tokenizer=None, text_encoder=None, vae=wan_vae(), scheduler=scheduler, transformer=transformer
    )
    return Tiny(finish(pipe), SMALL | {"prompt": None}, TEXT)


def anyflow() -> Tiny:
    size = {name: value for name, value in wan_size().items() if name != "qk_norm"}
    transformer = diffusers.AnyFlowTransformer3DModel(**size)
    pipe = diffusers.AnyFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        transformer=transformer,
        vae=wan_vae(),
        scheduler=diffusers.FlowMapEulerDiscreteScheduler(),
    )
    return Tiny(finish(pipe), SMALL, TEXT)


def text_to_video_sd(scheduler: Any = None) -> Tiny:
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), cross_attention_dim=32, attention_head_dim=4,
        norm_num_groups=2,
    )  # fmt: skip
    pipe = diffusers.TextToVideoSDPipeline(
        vae=image_vae(), text_encoder=None, tokenizer=None, unet=unet,
        scheduler=scheduler or diffusers.DDIMScheduler(clip_sample=False),
    )  # fmt: skip
    return Tiny(finish(pipe), {"height": 16, "width": 16, "num_frames": 4, "guidance_scale": 3.0}, TEXT)


class _Harmless(torch.nn.Module):
    """In place of Cosmos's guardrail, which is large; the pipelines do not run without one."""

    device, dtype = torch.device("cpu"), torch.float32

    def check_text_safety(self, prompt: str) -> bool:
        return True

    def check_video_safety(self, frames: Any) -> Any:
        return frames


def _cosmos_transformer(in_channels: int, out_channels: int) -> Any:
    return diffusers.CosmosTransformer3DModel(
        in_channels=in_channels, out_channels=out_channels, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        mlp_ratio=2, text_embed_dim=32, adaln_lora_dim=4, max_size=(4, 32, 32), patch_size=(1, 2, 2),
        rope_scale=(2.0, 1.0, 1.0), concat_padding_mask=False, extra_pos_embed_type="learnable",
    )  # fmt: skip


def cosmos1() -> Tiny:
    means = torch.linspace(-0.3, 0.3, 4 * 8).tolist()  # of 4 channels in 8 latent frames
    vae = diffusers.AutoencoderKLCosmos(
        in_channels=3, out_channels=3, latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8), attention_resolutions=(8,), resolution=64, num_layers=1, patch_size=4,
        patch_type="haar", scaling_factor=1.0, spatial_compression_ratio=4, temporal_compression_ratio=4,
        latents_mean=means, latents_std=[1 + abs(mean) for mean in means],
    )  # fmt: skip
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=0.002, sigma_max=80, sigma_data=0.5, sigma_schedule="karras", prediction_type="epsilon", rho=7.0,
        final_sigmas_type="sigma_min",
    )  # fmt: skip
    pipe = diffusers.CosmosTextToWorldPipeline(
        text_encoder=None, tokenizer=None, transformer=_cosmos_transformer(4, 4), vae=vae, scheduler=scheduler,
        safety_checker=_Harmless(),
    )  # fmt: skip
    return Tiny(finish(pipe), SMALL | {"height": 32, "width": 32}, TEXT)


def cosmos2() -> Tiny:
    pipe = diffusers.Cosmos2VideoToWorldPipeline(
        text_encoder=None, tokenizer=None, transformer=_cosmos_transformer(17, 16), vae=wan_vae(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True), safety_checker=_Harmless(),
    )  # fmt: skip
    image = Image.new("RGB", (32, 32), (200, 80, 20))
    return Tiny(finish(pipe), SMALL | {"height": 32, "width": 32, "image": image}, TEXT)


def cosmos25() -> Tiny:
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    )
    pipe = diffusers.Cosmos2_5_PredictBasePipeline(
        text_encoder=None, tokenizer=None, transformer=_cosmos_transformer(17, 16), vae=wan_vae(), scheduler=scheduler,
        safety_checker=_Harmless(),
    )  # fmt: skip
    return Tiny(finish(pipe), SMALL | {"height": 32, "width": 32}, TEXT)


def kandinsky5(visual_cond: bool = True) -> Tiny:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=32, in_text_dim2=8, time_dim=32, out_visual_dim=4, patch_size=(1, 2, 2),
        model_dim=48, ff_dim=64, num_text_blocks=1, num_visual_blocks=1, axes_dims=(8, 8, 8), visual_cond=visual_cond,
    )  # fmt: skip
    pipe = diffusers.Kandinsky5T2VPipeline(
        transformer=transformer, vae=hunyuan_vae(), text_encoder=None, tokenizer=None, text_encoder_2=None,
        tokenizer_2=None, scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
    )  # fmt: skip
    text = {}
    for seed, name in ((1, ""), (2, "negative_")):
        text[f"{name}prompt_embeds_qwen"] = embeds(seed, 1, 8, 32)
        text[f"{name}prompt_embeds_clip"] = embeds(seed + 2, 1, 8)
    lengths = {f"{name}prompt_cu_seqlens": torch.tensor([0, 8], dtype=torch.int32) for name in ("", "negative_")}
    return Tiny(finish(pipe), SMALL | lengths | {"height": 16, "width": 32}, text)


def sana(sample_size: int = 8) -> Tiny:
    transformer = diffusers.SanaVideoTransformer3DModel(
        in_channels=16, out_channels=16, num_attention_heads=2, attention_head_dim=12, num_layers=1,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        mlp_ratio=2.5, sample_size=sample_size, patch_size=(1, 2, 2), qk_norm="rms_norm_across_heads",
        rope_max_seq_len=64,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
    )
    pipe = diffusers.SanaVideoPipeline(
        transformer=transformer, vae=wan_vae(), scheduler=scheduler, text_encoder=None, tokenizer=None
    )
    masks = {name: torch.ones(1, 8) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    arguments = {"height": 32, "width": 64, "frames": 9, "guidance_scale": 3.0, "use_resolution_binning": False}
    return Tiny(finish(pipe), arguments | {"negative_prompt": None}, TEXT | masks)


def sana_binned() -> Tiny:
    """Sampled in one of its known aspect ratios, then resized and cropped to the size asked for."""
    tiny = sana(sample_size=30)
    tiny.arguments |= {"height": 96, "width": 160, "frames": 1, "use_resolution_binning": True}
    return tiny


def easyanimate() -> Tiny:
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=2,
        text_embed_dim=32, num_layers=1, sample_width=16, sample_height=16, patch_size=2,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D",) + ("SpatialTemporalDownBlock3D",) * 3,
        up_block_types=("SpatialUpBlock3D",) + ("SpatialTemporalUpBlock3D",) * 3, block_out_channels=(8, 8, 8, 8),
        latent_channels=4, layers_per_block=1, norm_num_groups=2, spatial_group_norm=False,
    )  # fmt: skip
    pipe = diffusers.EasyAnimatePipeline(
        vae=vae, text_encoder=None, tokenizer=None, transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    masks = {name: torch.ones(1, 8) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")}
    return Tiny(finish(pipe), SMALL | {"num_frames": 5}, TEXT | masks, "num_images_per_prompt")


def motif() -> Tiny:
    transformer = diffusers.MotifVideoTransformer3DModel(
        in_channels=33, out_channels=16, num_attention_heads=2, attention_head_dim=16, num_layers=1,
        num_single_layers=1, text_embed_dim=32, rope_axes_dim=(4, 6, 6),
    )  # fmt: skip
    pipe = diffusers.MotifVideoPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=wan_vae(), text_encoder=None, tokenizer=None,
        transformer=transformer, guider=ClassifierFreeGuidance(3.0),
    )  # fmt: skip
    masks = {
        name: torch.ones(1, 8, dtype=torch.bool) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")
    }
    arguments = {name: value for name, value in SMALL.items() if name != "guidance_scale"}
    return Tiny(finish(pipe), arguments, TEXT | masks)


def ltx2() -> Tiny:
    from diffusers.pipelines.ltx2 import LTX2TextConnectors
    from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder

    transformer = diffusers.LTX2VideoTransformer3DModel(
        in_channels=4, out_channels=4, patch_size=1, patch_size_t=1, num_attention_heads=2, attention_head_dim=8,
        cross_attention_dim=16, audio_in_channels=4, audio_out_channels=4, audio_num_attention_heads=2,
        audio_attention_head_dim=4, audio_cross_attention_dim=8, num_layers=1, caption_channels=32,
        qk_norm="rms_norm_across_heads", rope_double_precision=False, rope_type="split",
    )  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, video_connector_num_attention_heads=4,
        video_connector_attention_head_dim=8, video_connector_num_layers=1,
        video_connector_num_learnable_registers=None,
        audio_connector_num_attention_heads=4, audio_connector_attention_head_dim=8, audio_connector_num_layers=1,
        audio_connector_num_learnable_registers=None, connector_rope_base_seq_len=32, rope_theta=10000.0,
        rope_double_precision=False, causal_temporal_positioning=False, rope_type="split",
    )  # fmt: skip
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), timestep_conditioning=True, patch_size=1, patch_size_t=1, encoder_causal=True,
        decoder_causal=False,
    )  # fmt: skip
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    audio_vae = diffusers.AutoencoderKLLTX2Audio(
        base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1, attn_resolutions=None, in_channels=2,
        resolution=32, latent_channels=2, norm_type="pixel", causality_axis="height", dropout=0.0,
        mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160, is_causal=True, mel_bins=8,
    )  # fmt: skip
    vocoder = LTX2Vocoder(
        in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4], upsample_factors=[2, 2],
        resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]], leaky_relu_negative_slope=0.1,
        output_sampling_rate=16000,
    )  # fmt: skip
    pipe = diffusers.LTX2Pipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(), vae=vae, audio_vae=audio_vae, text_encoder=None,
        tokenizer=None, connectors=connectors, transformer=transformer, vocoder=vocoder,
    )  # fmt: skip
    text = {"prompt_embeds": embeds(1, 1, 8, 96), "negative_prompt_embeds": embeds(2, 1, 8, 96)}
    masks = {
        name: torch.ones(1, 8, dtype=torch.long) for name in ("prompt_attention_mask", "negative_prompt_attention_mask")
    }
    arguments = {
        "height": 32, "width": 32, "num_frames": 5, "frame_rate": 25.0, "guidance_scale": 3.0, "stg_scale": 0.0,
        "modality_scale": 1.0, "audio_stg_scale": 0.0, "audio_modality_scale": 1.0,
        "spatio_temporal_guidance_blocks": None, "decode_timestep": 0.05, "decode_noise_scale": 0.025,
    }  # fmt: skip
    return Tiny(finish(pipe), arguments, text | masks)
