"""`dover-eval info`: what runs here, and why."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from dover_eval.cli.options import Device, Model

if TYPE_CHECKING:
    from dover_kernels import KernelPath

    from dover_eval.config import DOVERConfig


def info(
    model: Model = None,
    device: Device = None,
) -> None:
    """Tell versions, device, decoder, kernel and text encoder in use, and why each was chosen."""
    import platform

    import av
    import torch
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from dover_eval.cli.loading import load_scorer

    scorer = load_scorer(model, device)
    encoder = scorer.model.text_encoder
    config = scorer.config
    parameters = sum(p.numel() for p in scorer.model.parameters())
    rows = {
        "versions": ", ".join(
            f"{name} {_version(name)}" for name in ("dover-eval", "torch", "transformers", "av", "triton")
        )
        + f", Python {platform.python_version()}",
        "device": _device(scorer.device),
        "dtype": f"{scorer.fingerprint.dtype} (float32 on a CPU, bfloat16 on a GPU unless asked otherwise)",
        "model": f"{model or 'the embedded default'}, {parameters / 1e6:.1f} M parameters",
        "sampling": _sampling(config),
        "text encoder": f"{encoder.name} from {encoder.source}, {encoder.pooling} pooling, the model's own",
        "decoder": f"PyAV {av.__version__} with FFmpeg {av.ffmpeg_version_info} (its wheel carries FFmpeg)",
        "kernel": _kernel(scorer.kernels),
        "threads": f"{torch.get_num_threads()} of torch",
        "fingerprint": str(scorer.fingerprint),
    }
    table = Table(show_header=False, box=None)
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    Console().print(table)


def _sampling(config: DOVERConfig) -> str:
    run = config.num_frames // config.windows
    how = "uniform in time" if config.windows == 1 else f"in {config.windows} runs of {run} consecutive ones"
    height, width = config.frame_size
    return f"{config.num_frames} frames, {how}, {width}x{height}, {' and '.join(config.views)}"


def _kernel(kernels: dict[KernelPath, list[str]]) -> str:
    if len(kernels) == 1:
        return str(next(iter(kernels)))
    return "\n".join(f"{'; '.join(layers)}: {path}" for path, layers in kernels.items())


def _device(device: object) -> str:
    import torch

    kind = str(device)
    if kind.startswith("cuda"):
        return f"{kind}: {torch.cuda.get_device_name(kind)}"
    if torch.cuda.is_available():
        return f"{kind}, as asked (a GPU is there)"
    return f"{kind} ({torch.backends.cpu.get_cpu_capability()}): torch sees no GPU"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
