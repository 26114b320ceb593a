"""Start the server."""

from __future__ import annotations

import uvicorn

from dover_eval.loopback import is_loopback
from dover_integrations.rewards.core import DoverReward
from dover_integrations.server.app import create_app
from dover_integrations.server.settings import ServerSettings


def run(
    reward: DoverReward,
    settings: ServerSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    log_level: str = "info",
) -> None:
    """Serve until SIGTERM or SIGINT: no new connections then, and an answer to every request that was accepted.

    Raises ValueError for a host other than loopback without a token.
    """
    check_open(settings, host)
    uvicorn.run(
        create_app(reward, settings),
        host=host,
        port=port,
        log_level=log_level,
        timeout_graceful_shutdown=round(settings.body_timeout + settings.timeout),
        limit_concurrency=4 * settings.queue_size,
        server_header=False,
    )


def check_open(settings: ServerSettings, host: str) -> None:
    """Raises ValueError for a host other than loopback without a token."""
    if settings.token is None and not is_loopback(host):
        raise ValueError(f"expected a token (--token or DOVER_EVAL_TOKEN) to listen on {host}: anyone could ask")
