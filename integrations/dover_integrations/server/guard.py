"""The gate in front of the routes: who may come in, and how much may come in at once."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dover_integrations.server.memory import Budget, Held
from dover_integrations.server.settings import ServerSettings

OPEN_PATHS = ("/health",)


class Guard:
    """ASGI middleware: bearer token or no web page, size of a body, seconds in which it arrives, and bytes of all."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings
        self.budget = Budget(settings.max_memory)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self.settings.token is None and (reason := _of_a_web_page(headers)):
            await _refuse(403, f"without a token, {reason}")(scope, receive, send)
            return
        if scope["path"] not in OPEN_PATHS and not self._is_known(headers.get("authorization", "")):
            await _refuse(401, "expected a valid bearer token", {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        size = self._announced(headers)
        if size is None:
            await _refuse(400, "expected a whole number as Content-Length")(scope, receive, send)
        elif size > self.settings.max_body:
            await _refuse(413, self._too_large(size))(scope, receive, send)
        else:
            with Held(self.budget) as held:
                scope["memory"] = held  # for what the route decodes
                await self.app(scope, self._limited(receive, held), send)

    def _is_known(self, authorization: str) -> bool:
        if self.settings.token is None:
            return True
        scheme, _, token = authorization.partition(" ")
        # In constant time, and over bytes: the function takes no text beyond ASCII.
        same = hmac.compare_digest(token.strip().encode(), self.settings.token.encode())
        return scheme.lower() == "bearer" and same

    def _announced(self, headers: Headers) -> int | None:
        """Bytes of the body, as the client says; 0 where it does not, None for nonsense."""
        text = headers.get("content-length", "0")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None

    def _too_large(self, size: int) -> str:
        return f"expected a body of at most {self.settings.max_body} bytes, got {size} or more"

    def _limited(self, receive: Receive, held: Held) -> Callable[[], Awaitable[Message]]:
        """`receive`, with its bytes taken of `held` as they come: a client that only announces them holds none."""
        received = 0
        whole = False
        deadline = asyncio.get_running_loop().time() + self.settings.body_timeout

        async def limited() -> Message:
            nonlocal received, whole
            if whole:  # from here on it can only be asked whether the client has gone
                return await receive()
            try:
                left = deadline - asyncio.get_running_loop().time()
                message = await asyncio.wait_for(receive(), max(left, 0))
            except asyncio.TimeoutError:
                seconds = self.settings.body_timeout
                raise HTTPException(408, f"expected the whole body within {seconds:g} seconds") from None
            size = len(message.get("body", b""))
            received += size
            if received > self.settings.max_body:
                raise HTTPException(413, self._too_large(received))
            held.take(2 * size)  # once more for the tensors, texts or files that are copied out of it
            whole = not message.get("more_body", False)
            return message

        return limited


def _of_a_web_page(headers: Headers) -> str | None:
    """Why this may be a web page that the user of this machine has open; None if it cannot be.

    Loopback keeps no page out: a browser sends it requests for all of them, and lets a page whose name has come to mean
    127.0.0.1 read the answers. Such a page's Host is a name, for that is what the browser was given. The server has no
    pages of its own.
    """
    host = headers.get("host", "")
    if not _is_address(host):
        return f"expected an IP address or localhost as Host, got {host!r}"
    if "origin" in headers:
        return f"expected no web page to ask, got one of Origin {headers['origin']!r}"
    site = headers.get("sec-fetch-site", "none")
    return None if site in ("none", "same-origin") else f"expected no web page to ask, got Sec-Fetch-Site {site!r}"


def _is_address(host: str) -> bool:
    """Whether a Host, with or without a port, is an IP address or localhost."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _refuse(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"detail": detail}, status, {"Connection": "close", **(headers or {})})
