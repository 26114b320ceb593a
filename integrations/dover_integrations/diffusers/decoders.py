"""How each pipeline of diffusers decodes its latents: read from diffusers 0.42, every row tested against its pipeline.

Operations and their order follow the pipelines, so that results agree to the last bit and not only nearly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLWan
from diffusers.utils.torch_utils import randn_tensor
from packaging.version import Version
from torch import Tensor

from dover_integrations.diffusers.latents import Call, LatentDecoder, register_latent_decoder
from dover_integrations.diffusers.running import needed


def _per_channel(values: Sequence[float] | Tensor, z: Tensor) -> Tensor:
    return torch.as_tensor(values).view(1, -1, 1, 1, 1).to(z.device, z.dtype)


def _to_wan(pipe: Any, z: Tensor, call: Call) -> Tensor:
    z = z.to(pipe.vae.dtype)
    inverse_std = 1.0 / _per_channel(pipe.vae.config.latents_std, z)
    return z / inverse_std + _per_channel(pipe.vae.config.latents_mean, z)


def _without_references(pipe: Any, z: Tensor, call: Call) -> Tensor:
    return z[:, :, call.get("num_reference_images") or 0 :]


def _to_wan_modular(pipe: Any, z: Tensor, call: Call) -> Tensor:
    inverse_std = 1.0 / _per_channel(pipe.vae.config.latents_std, z)
    return (z / inverse_std + _per_channel(pipe.vae.config.latents_mean, z)).to(pipe.vae.dtype)


def _to_hunyuan(pipe: Any, z: Tensor, call: Call) -> Tensor:
    return z.to(pipe.vae.dtype) / pipe.vae.config.scaling_factor


def _to_mochi(pipe: Any, z: Tensor, call: Call) -> Tensor:
    config = pipe.vae.config
    if getattr(config, "latents_mean", None) is None or getattr(config, "latents_std", None) is None:
        return z / config.scaling_factor
    return z * _per_channel(config.latents_std, z) / config.scaling_factor + _per_channel(config.latents_mean, z)


def _unpack_cogvideox(pipe: Any, latents: Tensor, call: Call) -> Tensor:
    """(B,F,C,H,W) without the frames that CogVideoX 1.5 puts in front to fill its last temporal patch."""
    padding = 0
    if pipe.transformer.config.patch_size_t is not None:
        if "additional_frames" in call:  # the running call has raised its num_frames by the padding
            padding = call["additional_frames"]
        else:
            num_frames = needed(call, "num_frames", pipe)
            padding = latents.shape[1] - ((num_frames - 1) // pipe.vae_scale_factor_temporal + 1)
    return latents[:, padding:].permute(0, 2, 1, 3, 4)


def _to_cogvideox(pipe: Any, z: Tensor, call: Call) -> Tensor:
    return 1 / pipe.vae_scaling_factor_image * z


def _to_easyanimate(pipe: Any, z: Tensor, call: Call) -> Tensor:
    return 1 / pipe.vae.config.scaling_factor * z


def _to_motif(pipe: Any, z: Tensor, call: Call) -> Tensor:
    return pipe._denormalize_latents(z.to(pipe.vae.dtype), pipe.vae.config.latents_mean, pipe.vae.config.latents_std)


# LTX and LTX-2: packed latents, and VAEs that are conditioned on a timestep and want a little noise with it.


def _unpack_ltx(pipe: Any, latents: Tensor, call: Call) -> Tensor:
    if "latent_num_frames" in call:
        size = [call[f"latent_{name}"] for name in ("num_frames", "height", "width")]
    else:
        size = [
            (needed(call, "num_frames", pipe) - 1) // pipe.vae_temporal_compression_ratio + 1,
            needed(call, "height", pipe) // pipe.vae_spatial_compression_ratio,
            needed(call, "width", pipe) // pipe.vae_spatial_compression_ratio,
        ]
    return pipe._unpack_latents(
        latents, *size, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size
    )


def _ltx_denormalized(pipe: Any, z: Tensor) -> Tensor:
    return pipe._denormalize_latents(z, pipe.vae.latents_mean, pipe.vae.latents_std, pipe.vae.config.scaling_factor)


def _ltx_dtype(pipe: Any, call: Call) -> torch.dtype:
    embeds = call.get("prompt_embeds")
    return embeds.dtype if isinstance(embeds, Tensor) else pipe.vae.dtype


def _as_list(value: Any, count: int) -> list[float]:
    return value if isinstance(value, list) else [value] * count


def _ltx_noised(pipe: Any, z: Tensor, call: Call) -> Tensor:
    """The very noise that the pipeline would mix in if it decoded now; its generator stays where it is."""
    if not pipe.vae.config.timestep_conditioning:
        return z
    times = _as_list(needed(call, "decode_timestep", pipe), len(z))
    scales = times if call.get("decode_noise_scale") is None else _as_list(call["decode_noise_scale"], len(z))
    noise = _peek_noise(z, call.get("generator"))
    scale = torch.tensor(scales, device=z.device, dtype=z.dtype)[:, None, None, None, None]
    return (1 - scale) * z + scale * noise


def _peek_noise(z: Tensor, generator: Any) -> Tensor:
    if generator is None:
        with torch.random.fork_rng(devices=[z.device] if z.is_cuda else []):
            return randn_tensor(z.shape, device=z.device, dtype=z.dtype)
    copies = [one.clone_state() for one in (generator if isinstance(generator, list) else [generator])]
    return randn_tensor(z.shape, generator=copies, device=z.device, dtype=z.dtype)  # it takes one for all, too


def _to_ltx(pipe: Any, z: Tensor, call: Call) -> Tensor:
    z = _ltx_denormalized(pipe, z).to(_ltx_dtype(pipe, call))
    return _ltx_noised(pipe, z, call).to(pipe.vae.dtype)


def _to_ltx2(pipe: Any, z: Tensor, call: Call) -> Tensor:
    z = _ltx_noised(pipe, z.to(_ltx_dtype(pipe, call)), call)
    return _ltx_denormalized(pipe, z).to(pipe.vae.dtype)


def _decode_ltx(pipe: Any, z: Tensor, call: Call, rows: slice) -> Tensor:
    timestep = None
    if pipe.vae.config.timestep_conditioning:
        times = _as_list(needed(call, "decode_timestep", pipe), rows.stop)[rows]
        timestep = torch.tensor(times, device=z.device, dtype=_ltx_dtype(pipe, call))
    return pipe.vae.decode(z, timestep, return_dict=False)[0]


# Image VAEs that take a video frame by frame, and VAEs that only the pipeline's own method drives.


def _decode_animatediff(pipe: Any, z: Tensor, call: Call, rows: slice) -> Tensor:
    return pipe.decode_latents(z, call.get("decode_chunk_size") or 16)


def _decode_by_method(pipe: Any, z: Tensor, call: Call, rows: slice) -> Tensor:
    return pipe.decode_latents(z)


def _decode_latte(pipe: Any, z: Tensor, call: Call, rows: slice) -> Tensor:
    return pipe.decode_latents(z, z.shape[2], decode_chunk_size=call.get("decode_chunk_size") or 14)


def _decode_allegro(pipe: Any, z: Tensor, call: Call, rows: slice) -> Tensor:
    """Its VAE leaves blank what does not fill a tile, and says nothing."""
    tile = pipe.vae.kernel[0] // pipe.vae.config.temporal_compression_ratio
    if z.shape[2] < tile:
        raise ValueError(f"Allegro's VAE decodes tiles of {tile} latent frames: {z.shape[2]} would come out blank")
    return pipe.decode_latents(z)


def _to_vae_dtype(pipe: Any, z: Tensor, call: Call) -> Tensor:
    return z.to(pipe.vae.dtype)


def _crop_allegro(pipe: Any, video: Tensor, call: Call) -> Tensor:
    return video[:, :, : call.get("num_frames"), : call.get("height"), : call.get("width")]


# Cosmos: three generations, three scales.


def _to_cosmos1(pipe: Any, z: Tensor, call: Call) -> Tensor:
    """Means and deviations of each latent frame of each channel."""
    config, sigma_data = pipe.vae.config, pipe.scheduler.config.sigma_data
    if config.latents_mean is None:
        return (z / sigma_data).to(pipe.vae.dtype)
    shape = (1, config.latent_channels, -1, 1, 1)
    mean = torch.tensor(config.latents_mean).view(shape)[:, :, : z.shape[2]].to(z)
    std = torch.tensor(config.latents_std).view(shape)[:, :, : z.shape[2]].to(z)
    return (z * std / sigma_data + mean).to(pipe.vae.dtype)


def _to_cosmos2(pipe: Any, z: Tensor, call: Call) -> Tensor:
    config = pipe.vae.config
    z = z * _per_channel(config.latents_std, z) / pipe.scheduler.config.sigma_data
    return (z + _per_channel(config.latents_mean, z)).to(pipe.vae.dtype)


def _to_cosmos25(pipe: Any, z: Tensor, call: Call) -> Tensor:
    """`pipe.latents_std` holds reciprocals of deviations."""
    z = z / pipe.latents_std.to(z.device, z.dtype) + pipe.latents_mean.to(z.device, z.dtype)
    return z.to(pipe.vae.dtype)


def _match_cosmos25(pipe: Any, video: Tensor, call: Call) -> Tensor:
    return pipe._match_num_frames(video, call.get("num_frames") or video.shape[2])


# Kandinsky 5 keeps conditioning channels beside the latents; SANA-Video resizes into a known aspect ratio and back.


def _unpack_kandinsky5(pipe: Any, latents: Tensor, call: Call) -> Tensor:
    return latents[..., : pipe.transformer.config.in_visual_dim].permute(0, 4, 1, 2, 3)


def _to_sana(pipe: Any, z: Tensor, call: Call) -> Tensor:
    vae: Any = pipe.vae
    if isinstance(pipe.vae, AutoencoderKLWan):
        return _to_wan(pipe, z, call)
    z = z.to(vae.dtype)
    if isinstance(pipe.vae, getattr(diffusers, "AutoencoderKLLTX2Video", ())):  # which diffusers has from 0.37 on
        inverse_std = 1.0 / _per_channel(vae.latents_std, z)
        return z / inverse_std + _per_channel(vae.latents_mean, z)
    return z


def _resize_sana(pipe: Any, video: Tensor, call: Call) -> Tensor:
    if not needed(call, "use_resolution_binning", pipe):
        return video
    return pipe.video_processor.resize_and_crop_tensor(
        video, needed(call, "orig_width", pipe), needed(call, "orig_height", pipe)
    )


def _check_skyreels_forcing(pipe: Any, call: Call) -> None:
    """A longer video is sampled in pieces that overlap, and a callback gets the latents of one at a time."""
    frames, most = call.get("num_frames"), call.get("base_num_frames")
    if call.get("overlap_history") is not None and frames is not None and most is not None and frames > most:
        raise ValueError(
            f"{frames} frames are sampled in pieces of {most} (base_num_frames), and no callback gets the latents of "
            "all: score the pipeline's output with score_pipeline_output"
        )


_WAN = LatentDecoder(to_vae=_to_wan)
_LTX = LatentDecoder(unpack=_unpack_ltx, to_vae=_to_ltx, decode=_decode_ltx)

DECODERS = {
    "AllegroPipeline": LatentDecoder(to_vae=_to_vae_dtype, decode=_decode_allegro, finish=_crop_allegro),
    "AnimateDiffPipeline": LatentDecoder(decode=_decode_animatediff),
    "AnyFlowPipeline": replace(_WAN, unpack=lambda pipe, z, call: z.permute(0, 2, 1, 3, 4), model_output=None),
    "CogVideoXPipeline": LatentDecoder(unpack=_unpack_cogvideox, to_vae=_to_cogvideox),
    "CosmosTextToWorldPipeline": LatentDecoder(to_vae=_to_cosmos1, predicts_clean=True),
    "Cosmos2VideoToWorldPipeline": LatentDecoder(to_vae=_to_cosmos2),
    "Cosmos2_5_PredictBasePipeline": LatentDecoder(to_vae=_to_cosmos25, finish=_match_cosmos25),
    "EasyAnimatePipeline": LatentDecoder(to_vae=_to_easyanimate),
    "HunyuanVideoPipeline": LatentDecoder(to_vae=_to_hunyuan),
    "Kandinsky5T2VPipeline": LatentDecoder(unpack=_unpack_kandinsky5, to_vae=_to_hunyuan, model_output="pred_velocity"),
    "LattePipeline": LatentDecoder(decode=_decode_latte),
    "LTXPipeline": _LTX,
    "LTX2Pipeline": replace(_LTX, to_vae=_to_ltx2, model_output="noise_pred_video"),
    "MochiPipeline": LatentDecoder(to_vae=_to_mochi),
    "MotifVideoPipeline": LatentDecoder(to_vae=_to_motif),
    "SanaVideoPipeline": LatentDecoder(to_vae=_to_sana, finish=_resize_sana),
    "SkyReelsV2Pipeline": _WAN,
    "SkyReelsV2DiffusionForcingPipeline": replace(_WAN, model_output=None, check=_check_skyreels_forcing),
    "TextToVideoSDPipeline": LatentDecoder(decode=_decode_by_method),
    "WanPipeline": _WAN,
    "WanModularPipeline": LatentDecoder(unpack=_without_references, to_vae=_to_wan_modular),
}
if Version(diffusers.__version__) < Version("0.39"):  # where its latents_std held the deviations themselves
    del DECODERS["Cosmos2_5_PredictBasePipeline"]
for _name, _decoder in DECODERS.items():
    register_latent_decoder(_name, _decoder)
