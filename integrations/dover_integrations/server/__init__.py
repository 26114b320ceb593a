"""The reward over HTTP: a server that batches what its clients ask, and a client with the call of `DoverReward`.

`DoverRewardClient` needs httpx alone; the server needs the extra `server`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dover_integrations.server.app import create_app as create_app
    from dover_integrations.server.client import DoverRewardClient as DoverRewardClient
    from dover_integrations.server.settings import ServerSettings as ServerSettings
    from dover_integrations.server.uvicorn_runner import check_open as check_open
    from dover_integrations.server.uvicorn_runner import run as run

_HOME = {"DoverRewardClient": "client", "ServerSettings": "settings", "create_app": "app"}
_HOME |= dict.fromkeys(("check_open", "run"), "uvicorn_runner")

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
