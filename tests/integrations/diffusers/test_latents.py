"""Latents decode as the pipeline itself decodes them."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from dover_integrations.diffusers import LatentDecoder, latents_to_frames, register_latent_decoder
from dover_integrations.diffusers.decoders import DECODERS, _to_sana
from dover_integrations.diffusers.latents import _REGISTRY, latent_decoder

EIGHT = ("wan", "ltx", "cogvideox", "mochi", "hunyuan", "animatediff", "allegro", "latte")
REST = (
    "wan_unipc", "skyreels", "skyreels_forcing", "anyflow", "ltx_timestep", "ltx2", "cogvideox_15", "cosmos1",
    "cosmos2", "cosmos25", "kandinsky5", "sana", "sana_binned", "easyanimate", "motif",
)  # fmt: skip


def decoded_at_the_end(tiny: Any, **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """(frames of the last latents, decoded within the callback; the pipeline's own)."""
    seen = {}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == pipe.num_timesteps - 1:
            seen["frames"] = latents_to_frames(pipe, tensors["latents"], **how)
        return tensors

    output = tiny(callback_on_step_end=callback)
    return seen["frames"], output


@pytest.mark.parametrize("name", EIGHT + REST)
def test_the_last_latents_decode_to_the_pipelines_own_frames(tiny: Any, name: str) -> None:
    ours, its_own = decoded_at_the_end(tiny(name))
    assert ours.shape == its_own.shape
    assert its_own.std() > 0.01, "frames without content prove nothing"
    # The Cosmos pipelines round to 256 levels on the way through their guardrail.
    tolerance = 1 / 255 + 1e-5 if name in ("cosmos1", "cosmos2") else 1e-5
    assert (ours - its_own).abs().max() <= tolerance


@pytest.mark.parametrize("name", ["cosmos1", "cosmos2"])
def test_before_the_guardrails_rounding_cosmos_agrees_exactly(
    tiny: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, decoded = tiny(name).pipe, []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda *a, **k: decoded.append(decode(*a, **k)) or decoded[-1])
    decoded_at_the_end(tiny(name))
    ours, its_own = decoded
    assert torch.equal(ours[0], its_own[0])


def test_text_to_video_sd_decodes_in_its_legacy_callback(tiny: Any) -> None:
    pipeline = tiny("text_to_video_sd")
    frames = []
    output = pipeline(callback=lambda step, t, latents: frames.append(latents_to_frames(pipeline.pipe, latents)))
    assert torch.allclose(frames[-1], output, atol=1e-5)


def test_every_row_of_the_table_is_tested_against_its_pipeline(tiny: Any) -> None:
    tested = {type(tiny(name).pipe).__name__ for name in EIGHT + REST}
    assert set(DECODERS) - tested == {"TextToVideoSDPipeline", "WanModularPipeline"}  # the latter in test_modular


@pytest.mark.parametrize("name", ["cogvideox", "mochi", "hunyuan", "animatediff", "wan"])
def test_half_precision_agrees_too(tiny_in_half: Any, name: str) -> None:
    ours, its_own = decoded_at_the_end(tiny_in_half(name))
    assert (ours.float() - its_own.float()).abs().max() <= 1e-5


@pytest.mark.parametrize("name", ["ltx", "ltx2", "cogvideox_15"])
def test_outside_of_a_call_missing_arguments_are_named_and_can_be_passed(tiny: Any, name: str) -> None:
    pipeline = tiny(name)
    seen = {}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen["latents"] = tensors["latents"].clone()
        return tensors

    noise = {"decode_noise_scale": 0.0} if name == "ltx2" else {}
    output = pipeline(callback_on_step_end=callback, **noise)
    with pytest.raises(ValueError, match="num_frames"):
        latents_to_frames(pipeline.pipe, seen["latents"])
    names = ("num_frames", "height", "width", "decode_timestep")
    call = {key: pipeline.arguments[key] for key in names if key in pipeline.arguments} | noise
    frames = latents_to_frames(pipeline.pipe, seen["latents"], call=call)
    assert torch.allclose(frames, output, atol=1e-5)


def test_the_users_generator_stays_where_it_is(tiny: Any) -> None:
    """LTX draws noise for its decoder: from a copy of the generator here."""
    for name in ("ltx_timestep", "ltx2"):
        pipeline = tiny(name)
        states = []

        def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            generator = arguments["generator"]  # noqa: B023  called at once
            before = generator.get_state()
            latents_to_frames(pipe, tensors["latents"])
            states.append(torch.equal(before, generator.get_state()))  # noqa: B023
            return tensors

        arguments = pipeline.kwargs(callback_on_step_end=callback)
        pipeline.pipe(**arguments)
        assert states
        assert all(states)


def test_without_a_generator_the_global_one_is_left_alone_and_its_noise_foreseen(tiny: Any) -> None:
    pipeline = tiny("ltx_timestep")
    torch.manual_seed(5)
    plain = pipeline(generator=None)
    torch.manual_seed(5)
    seen = {}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen["frames"] = latents_to_frames(pipe, tensors["latents"])
        return tensors

    watched = pipeline(generator=None, callback_on_step_end=callback)
    assert torch.equal(plain, watched)
    assert torch.allclose(seen["frames"], watched, atol=1e-5)


def test_several_prompts_with_a_generator_each(tiny: Any) -> None:
    pipeline = tiny("ltx_timestep")
    seen = {}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen["whole"] = latents_to_frames(pipe, tensors["latents"])
        seen["by_one"] = latents_to_frames(pipe, tensors["latents"], batch_size=1)
        return tensors

    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    output = pipeline(2, generator=generators, callback_on_step_end=callback)
    assert torch.allclose(seen["whole"], output, atol=1e-5)
    assert torch.allclose(seen["by_one"], output, atol=1e-5)


@pytest.mark.parametrize("name", ["wan", "cogvideox", "hunyuan", "latte", "kandinsky5"])
def test_one_video_at_a_time_gives_the_same_frames(tiny: Any, name: str) -> None:
    pipeline = tiny(name)
    seen = {}

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == pipe.num_timesteps - 1:
            seen["frames"] = latents_to_frames(pipe, tensors["latents"], batch_size=1)
        return tensors

    if name == "cogvideox":  # it takes several prompts, and one video of each
        output = pipeline(3, callback_on_step_end=callback)
    else:
        output = pipeline(callback_on_step_end=callback, **{pipeline.count_argument: 3})
    assert len(output) == 3
    assert (seen["frames"] - output).abs().max() <= 1e-5


@pytest.mark.parametrize(("name", "frames_of_two"), [("wan", 5), ("animatediff", 2), ("latte", 2), ("cosmos25", 5)])
def test_the_first_latent_frames_alone_decode_as_the_start_of_the_clip(
    tiny: Any, name: str, frames_of_two: int
) -> None:
    part, whole = decoded_at_the_end(tiny(name), frames=2)
    assert part.shape[1] == frames_of_two < whole.shape[1]
    assert torch.allclose(part, whole[:, :frames_of_two], atol=1e-5)


def test_any_choice_of_frames_is_exact_where_frames_decode_alone(tiny: Any) -> None:
    for frames, chosen in ((slice(1, None, 2), [1, 3]), ([3, 0], [3, 0])):
        part, whole = decoded_at_the_end(tiny("animatediff"), frames=frames)
        assert torch.allclose(part, whole[:, chosen], atol=1e-5)


def test_no_frame_chosen_is_an_error(tiny: Any) -> None:
    with pytest.raises(ValueError, match="leaves none of 3 latent frames"):
        decoded_at_the_end(tiny("wan"), frames=slice(7, 9))
    with pytest.raises(ValueError, match="frames of at least 1, got -1"):
        decoded_at_the_end(tiny("wan"), frames=-1)
    with pytest.raises(ValueError, match="batch_size of at least 1, got -1"):
        decoded_at_the_end(tiny("wan"), batch_size=-1)


def test_allegro_refuses_fewer_latent_frames_than_one_of_its_tiles(tiny: Any) -> None:
    with pytest.raises(ValueError, match="tiles of 2 latent frames"):
        decoded_at_the_end(tiny("allegro"), frames=1)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("wan", (1, 16, 3, 2, 2)),
        ("ltx", (1, 8, 3, 8, 16)),
        ("cogvideox_15", (1, 4, 3, 2, 2)),
        ("kandinsky5", (1, 4, 3, 2, 4)),
    ],
)
def test_a_decoder_of_the_users_own_gets_unpacked_latents_in_the_denoisers_scale(
    tiny: Any, name: str, shape: tuple[int, ...]
) -> None:
    shapes = []

    def decode(z: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(z.shape))
        z.zero_()  # a copy: the pipeline's latents must not feel it
        return torch.full((len(z), z.shape[2], 3, 4, 4), 0.25)

    frames, output = decoded_at_the_end(tiny(name), decode=decode)
    assert shapes == [shape]
    assert frames.shape == (1, shape[2], 3, 4, 4)
    assert torch.equal(output, tiny(name)())


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (1, 2, 4, 4, 4), (2, 2, 3, 4, 4)])
def test_what_the_users_decoder_returns_is_looked_at(tiny: Any, shape: tuple[int, ...]) -> None:
    message = re.escape(f"expected decode to return (1,T,3,H,W), got {shape}")
    with pytest.raises(ValueError, match=message):
        decoded_at_the_end(tiny("wan"), decode=lambda z: torch.zeros(shape))


def test_an_unknown_pipeline_is_told_how_to_register(tiny: Any) -> None:
    class OtherPipeline:
        pass

    with pytest.raises(NotImplementedError, match=r"OtherPipeline; known are .*register_latent_decoder"):
        latents_to_frames(OtherPipeline(), torch.zeros(1, 4, 2, 2, 2))


def test_a_registered_function_serves_a_class_and_those_derived_from_it(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class MyPipeline:
        vae, video_processor = tiny("hunyuan").pipe.vae, tiny("hunyuan").pipe.video_processor

    class MyOtherPipeline(MyPipeline):
        pass

    monkeypatch.setattr("dover_integrations.diffusers.latents._REGISTRY", dict(_REGISTRY))
    register_latent_decoder(MyPipeline, lambda pipe, latents, call: latents / 2)
    latents = torch.randn(1, 4, 2, 2, 2)
    frames = latents_to_frames(MyOtherPipeline(), latents)
    expected = MyPipeline.vae.decode(latents / 2).sample
    assert torch.allclose(frames, (expected.transpose(1, 2) / 2 + 0.5).clamp(0, 1), atol=1e-6)


def test_a_pipeline_derived_from_a_known_one_needs_no_registration(tiny: Any) -> None:
    pipe = tiny("wan").pipe
    derived = type("MyWan", (type(pipe),), {})
    assert latent_decoder(object.__new__(derived)) is latent_decoder(pipe)
    assert isinstance(latent_decoder(pipe), LatentDecoder)


def test_latents_of_a_wrong_shape_are_named(tiny: Any) -> None:
    with pytest.raises(ValueError, match=r"expected latents \(B,C,F,H,W\) of WanPipeline, got \(1, 16, 4\)"):
        latents_to_frames(tiny("wan").pipe, torch.zeros(1, 16, 4))


@pytest.mark.parametrize("vae", ["ltx2", "other"])
def test_sana_video_scales_by_the_kind_of_its_vae(tiny: Any, vae: str) -> None:
    """Its published VAEs besides Wan's: LTX-2's, with statistics in buffers, and one without any."""

    class Pipe:
        pass

    pipe: Any = Pipe()
    z = torch.randn(1, 4, 2, 2, 2)
    if vae == "ltx2":
        pipe.vae = tiny("ltx2").pipe.vae
        mean, std = (getattr(pipe.vae, name).view(1, 4, 1, 1, 1) for name in ("latents_mean", "latents_std"))
        assert torch.allclose(_to_sana(pipe, z, {}), z * std + mean)
    else:
        pipe.vae = tiny("latte").pipe.vae
        assert torch.equal(_to_sana(pipe, z, {}), z)
