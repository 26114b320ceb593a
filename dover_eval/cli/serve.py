"""`dover-eval serve`: the reward over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from dover_integrations.server.settings import MIB, ServerSettings

from dover_eval.cli.exits import extra, failure, needs, usage
from dover_eval.cli.loading import check_device, loading
from dover_eval.cli.options import BatchSize, Device, Model


def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on; any but loopback needs a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    device: Device = None,
    batch_size: BatchSize = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="DOVER_EVAL_TOKEN", help="Bearer token that clients must send. Better in the environment."),
    ] = None,
    video_root: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, help="Folder whose files requests may name as video_path."),
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weight", help="Such as Alignment=0.5, repeated: the rewards of /compute. Overall=1 by default."
        ),
    ] = None,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Most MiB of one request.")] = ServerSettings.max_body // MIB,
    max_memory_mib: Annotated[
        int, typer.Option(min=1, help="Most MiB of all requests at work.")
    ] = ServerSettings.max_memory // MIB,
    max_clips: Annotated[int, typer.Option(min=1, help="Most clips of one request.")] = ServerSettings.max_clips,
    max_frames: Annotated[int, typer.Option(min=1, help="Most frames of one clip.")] = ServerSettings.max_frames,
    max_pixels: Annotated[int, typer.Option(min=1, help="Most pixels of one frame.")] = ServerSettings.max_pixels,
    queue_size: Annotated[
        int, typer.Option(min=1, help="Most clips that wait or are scored.")
    ] = ServerSettings.queue_size,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds in which a request must be scored.")
    ] = ServerSettings.timeout,
    body_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds in which a request must arrive.")
    ] = ServerSettings.body_timeout,
    log_level: Annotated[
        Literal["critical", "error", "warning", "info", "debug", "trace"],
        typer.Option(help="What uvicorn logs at least."),
    ] = "info",
) -> None:
    """Serve rewards over HTTP: POST /score and /compute, GET /health, /metrics and /openapi.json.

    Exit status: 0 when it was stopped by Ctrl-C and 143 by SIGTERM, both after every accepted request was answered; 1
    when the model cannot be loaded or the address is not available, 2 when the command was not understood.
    """
    needs("server", "python_multipart")  # which FastAPI looks for when the first upload comes
    with extra("server"):
        from dover_integrations.rewards import DoverReward
        from dover_integrations.server import check_open, run
    check_device(device)
    try:
        settings = ServerSettings(
            token=token,
            video_root=video_root,
            max_body=max_body_mib * MIB,
            max_memory=max_memory_mib * MIB,
            max_clips=max_clips,
            max_frames=max_frames,
            max_pixels=max_pixels,
            queue_size=queue_size,
            body_timeout=body_timeout,
            timeout=timeout,
        )
        reward = DoverReward(
            model,
            weights=_weights(weights),
            layout="TCHW",
            value_range=(0, 255),
            nan_policy="nan",
            device=device,
            batch_size=batch_size,
        )
        check_open(settings, host)
    except ValueError as error:
        usage(error)
    with loading(model, device):
        reward.load()
    try:
        run(reward, settings, host=host, port=port, log_level=log_level)
    except SystemExit as error:  # uvicorn's, which has said why
        if error.code:
            failure(f"nothing listens on {host} port {port}")


def _weights(pairs: list[str] | None) -> dict[str, float] | None:
    if not pairs:
        return None
    weights = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            raise ValueError(f"expected a weight such as Alignment=0.5, got {pair!r}") from None
    return weights
