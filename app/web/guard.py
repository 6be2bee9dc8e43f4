"""An ASGI layer in front of gradio: a cookie for every visitor, files for their owners only, and only
the routes that the page needs.

gradio serves every file of its cache to whoever knows the path, fetches addresses that a request names, and has routes
for development. None of that is wanted on a machine that several people use.
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
from collections import Counter
from http.cookies import CookieError, SimpleCookie
from shutil import disk_usage
from typing import Any
from urllib.parse import unquote

from unipercept.app.web.metrics import Metrics
from unipercept.app.web.sessions import Sessions

COOKIE = "unipercept_visitor"
COOKIE_FORM = re.compile(r"[A-Za-z0-9_-]{32}")
QUOTA = 5  # what a visitor has sent may take so many times the largest upload
MULTIPART_SLACK = 1 << 16  # headers around the files of an upload
MAX_CALL_BYTES = 16 << 20  # of a call; it is held in memory, and a pasted table has 2 MB at most
MIN_FREE_BYTES = 500 * 10**6  # on the disk after an upload

PAGES: tuple[str, ...] = (
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/robots.txt",
    "/manifest.json",
    "/login",
    "/logout",
)
MONITORING = ("/health", "/metrics")  # asked for by machines, which are no visitors
PAGES += (*MONITORING, "/config/", "/login/")
FOLDERS = ("/static/", "/assets/", "/svelte/")
API = "/gradio_api"
API_ROUTES: tuple[str, ...] = (
    "info",
    "openapi.json",
    "queue/join",
    "queue/data",
    "cancel",
    "reset",
    "upload",
    "upload_progress",
)
API_ROUTES += ("startup-events", "login_check", "user", "app_id", "token", "theme.css")
API_FOLDERS = ("call/", "heartbeat/")

HEADERS = {
    # Nothing is fetched from elsewhere, whatever a recording or a library would like. gradio's components need eval.
    "content-security-policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'; frame-ancestors 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: Any, sessions: Sessions, metrics: Metrics, max_file_bytes: int, root_path: str) -> None:
        self.app, self.sessions, self.metrics = app, sessions, metrics
        self.max_file_bytes, self.root_path = max_file_bytes, root_path
        self._arriving: Counter[str] = Counter()  # bytes of uploads that are on their way, by visitor

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":  # the page uses none
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _http(self, scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        cookie = _cookie(headers.get(b"cookie", b""))
        fresh = cookie is None
        cookie = cookie or secrets.token_urlsafe(24)
        visitor = Sessions.visitor(cookie)
        if fresh:  # what comes after sees the visitor that this answer makes
            sent = b"; ".join(filter(None, [headers.get(b"cookie"), f"{COOKIE}={cookie}".encode()]))
            scope = {**scope, "headers": [*((k, v) for k, v in scope["headers"] if k != b"cookie"), (b"cookie", sent)]}
        secure = headers.get(b"x-forwarded-proto") == b"https" or scope.get("scheme") == "https"
        answer = _Answer(send, cookie if fresh else "", secure, self.root_path or "/")
        path = scope["path"].removeprefix(self.root_path) or "/"  # proxies strip it, or do not
        scope = {
            **scope,
            "path": path,
            "raw_path": scope.get("raw_path", b"").removeprefix(self.root_path.encode()) or b"/",
        }
        address = address_of((scope.get("client") or ("",))[0])
        refusal = self._refusal(path, scope, headers, visitor, address)
        if refusal is not None:
            status, line, why = refusal
            self.metrics.refuse(why)
            await answer.plain(status, line)
            return
        page = re.match(rf"{API}/heartbeat/(\w+)$", path)
        if path not in MONITORING:
            self.sessions.touch(visitor, page[1] if page else None, address)
        arriving = 0
        if path == f"{API}/upload":
            arriving = _length(headers)
            self._arriving[visitor] += arriving
            answer.keep(lambda body: self._own_uploads(visitor, body))
            scope = {**scope, "headers": [(k, v) for k, v in scope["headers"] if k != b"accept-encoding"]}
        try:
            await self.app(scope, receive, answer)
        finally:
            self._arriving[visitor] -= arriving
            self._arriving += Counter()  # drops those of nothing
            if page:
                self.sessions.leave(visitor, page[1])

    def _refusal(
        self, path: str, scope: Any, headers: dict[bytes, bytes], visitor: str, address: str
    ) -> tuple[int, str, str] | None:
        """Status, line and short reason where a request is turned away."""
        if path.startswith((f"{API}/file=", f"{API}/file/")):
            asked = unquote(path.removeprefix(f"{API}/file")[1:])
            if asked.startswith(("http:", "https:")) or not self.sessions.may_read(visitor, asked):
                return 403, "this file is not yours, or is no longer kept", "foreign file"
            return None
        if not _is_known(path):
            return 404, "there is no such page", "unknown route"
        return self._body_refusal(path, headers, visitor, address) if scope["method"] == "POST" else None

    def _body_refusal(
        self, path: str, headers: dict[bytes, bytes], visitor: str, address: str
    ) -> tuple[int, str, str] | None:
        """The same for what a request brings, before it is read."""
        is_upload, length = path == f"{API}/upload", _length(headers)
        if b"transfer-encoding" in headers or (is_upload and not length):
            return 411, "a request must say its length", "no length"
        if not is_upload:
            too_large = f"the call is larger than {MAX_CALL_BYTES / 1e6:.0f} MB; send a file instead"
            return (413, too_large, "call too large") if length > MAX_CALL_BYTES else None
        # Files that are sent together come in one request; gradio holds each of them to the limit of one.
        if length > QUOTA * self.max_file_bytes + MULTIPART_SLACK:
            one, all_of_them = (count * self.max_file_bytes / 1e6 for count in (1, QUOTA))
            return 413, f"a file may have {one:g} MB, and all of yours {all_of_them:g} MB", "upload too large"
        if self.sessions.sent_bytes_of(visitor) + self._arriving[visitor] + length > QUOTA * self.max_file_bytes:
            return 413, "your files fill your share of this machine; close the page to let them go", "quota"
        room = disk_usage(self.sessions.folder).free - self._arriving.total() - MIN_FREE_BYTES
        if length > room:
            return 507, "this machine has no room for more files; try again later", "disk full"
        if self.sessions.sent_bytes_from(address) + length > room:  # half of what there was, so that others have some
            return 507, "the files of your network address fill its share of this machine; try again later", "address"
        return None

    def _own_uploads(self, visitor: str, body: bytes) -> None:
        try:
            paths = json.loads(body)
        except ValueError:
            return
        for path in paths if isinstance(paths, list) else ():
            self.sessions.own(visitor, str(path), sent=True)


class _Answer:
    """`send` with our headers, a cookie where one is due, and a look at the body before it goes out."""

    def __init__(self, send: Any, cookie: str, secure: bool, cookie_path: str) -> None:
        self._send, self._look, self._waiting, self._body = send, None, None, b""
        self._headers = [(k.encode(), v.encode()) for k, v in HEADERS.items()]
        if cookie:
            attributes = f"Path={cookie_path}; HttpOnly; SameSite=Lax" + ("; Secure" if secure else "")
            self._headers.append((b"set-cookie", f"{COOKIE}={cookie}; {attributes}".encode()))

    def keep(self, look: Any) -> None:
        """Hold the answer back until `look` has seen its body."""
        self._look = look

    async def plain(self, status: int, line: str) -> None:
        body = line.encode()
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
        await self({"type": "http.response.start", "status": status, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *self._headers]}
            if self._look is not None:
                self._waiting = message
                return
        elif self._look is not None and self._waiting is not None:
            self._body += message.get("body", b"")
            if message.get("more_body"):
                return
            self._look(self._body)
            await self._send(self._waiting)
            message = {"type": "http.response.body", "body": self._body}
        await self._send(message)


def address_of(host: str) -> str:
    """What is counted as one address: a machine's of IPv4, a network's of IPv6, where each machine has many."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if address.version == 4:
        return str(address)
    return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))


def _length(headers: dict[bytes, bytes]) -> int:
    """What a request says of its length; 0 where it says nothing."""
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() else 0


def _is_known(path: str) -> bool:
    if path in PAGES or path.startswith(FOLDERS):
        return True
    inner = path.removeprefix(f"{API}/")
    return inner != path and (inner.rstrip("/") in API_ROUTES or inner.startswith(API_FOLDERS))


def _cookie(header: bytes) -> str | None:
    """The visitor's cookie, if it has the form of one of ours."""
    try:
        found = SimpleCookie(header.decode("latin-1")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found is not None and COOKIE_FORM.fullmatch(found.value) else None
