"""One gate in front of every route, Gradio's and ours: Host, Origin, size, login, headers.

Sessions are signed cookies; nothing is stored but the signing secret.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import json
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio import peers
from studio.settings import STATIC, Settings

SESSION_S = 14 * 24 * 3600
MAX_FAILURES, MAX_ALL_FAILURES, FAILURE_WINDOW_S = 10, 200, 60.0
MAX_BODY_BYTES = 64 * 1024**2  # of a request that is no upload: it is held in memory
FORM_OVERHEAD_BYTES = 1024**2  # what multipart adds around a file
MAX_FORM_BYTES = 10_000
OPEN_PATHS = ("/health",)

# gr.HTML templates need unsafe-eval and gradio's page unsafe-inline; this stops foreign code and sending data away
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)

_templates = Environment(loader=FileSystemLoader(STATIC), autoescape=True, undefined=StrictUndefined, trim_blocks=True)


class Gate:
    """ASGI middleware. `is_api_key` says whether a bearer's text is a key that was made in the studio."""

    def __init__(self, app: ASGIApp, settings: Settings, is_api_key: Callable[[str], bool]) -> None:
        self.app = app
        self.settings = settings
        self.login = Login(settings)
        self.is_api_key = is_api_key
        self.failures = Failures()
        self.policy = CONTENT_SECURITY_POLICY
        if settings.space_host:  # shown inside a page of the hub
            self.policy += " https://huggingface.co"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no route here speaks WebSocket
        request = Request(scope, receive)
        refusal = self._refuse(request) or await self._ask_for_login(request)
        send = self._with_headers(send)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self.app(scope, self._limited(request, receive), send)

    def _refuse(self, request: Request) -> Response | None:
        """Refuse another site's name (DNS rebinding), another site's page, and a body that is too large."""
        host = request.headers.get("host", "")
        if self.settings.is_loopback and not self._is_own_name(host):
            return refusal(
                403,
                f"This studio does not answer to the name {host[:100]!r}.",
                "Open it as 127.0.0.1, or list the name in STUDIO_ALLOWED_HOSTS.",
            )
        origin = request.headers.get("origin")
        if origin is not None and not self._is_own_origin(origin, host):
            return refusal(403, f"A page of {origin[:100]!r} may not use this studio.", "Open the studio's own address.")
        if _content_length(request.headers) > self._limit(request):
            return refusal(
                413,
                f"The request is larger than {self._limit(request):,} bytes.",
                "Send a smaller file, or raise STUDIO_MAX_UPLOAD_BYTES.",
            )
        return None

    def _is_own_name(self, host: str) -> bool:
        name = _host_name(host)
        return is_loopback(name) or name in self.settings.allowed_hosts or name == self.settings.space_host != ""

    def _is_own_origin(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
            default = {"http": 80, "https": 443}[parts.scheme]
            own = urlsplit(f"//{host}")
            is_same_port = (parts.port or default) == (own.port or default)
            if parts.hostname and parts.hostname == own.hostname and is_same_port:
                return True
        except (KeyError, ValueError):
            return False  # "null", or no origin at all
        return parts.hostname in self.settings.allowed_hosts or parts.hostname == self.settings.space_host

    def _limit(self, request: Request) -> int:
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            return self.settings.max_upload_bytes + FORM_OVERHEAD_BYTES
        return min(MAX_BODY_BYTES, self.settings.max_upload_bytes)

    def _limited(self, request: Request, receive: Receive) -> Receive:
        """Count the body as it comes: a chunked request names no length."""
        limit, seen = self._limit(request), 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"The request is larger than {limit:,} bytes.")
            return message

        return counted

    async def _ask_for_login(self, request: Request) -> Response | None:
        """None lets the request in: for a cookie, a bearer's token or key, a link with the token, or the login form."""
        path = request.scope["path"]  # never request.url: it is built from what the client says its host is
        if not self.settings.has_login or path in OPEN_PATHS:
            return None
        if self.login.is_session(request.cookies.get(self.login.cookie, "")):
            return self._leave(request, path)
        bearer = request.headers.get("authorization", "").partition(" ")[2].strip()
        link = request.query_params.get("token", "")
        is_form = path == "/login" and request.method == "POST"
        if not (bearer or link or is_form):
            return self._ask(request, path)
        client, _ = request.scope.get("client") or ("", 0)
        if wait_s := self.failures.wait_s(client):
            return too_many_failures(wait_s)
        if bearer:
            return await self._take_key(bearer, client, path)
        if link and self.login.is_token(link):
            without_token = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
            return self._welcome(request, _address(path, without_token))
        if is_form and (target := await self._target_of_form(request)):
            return self._welcome(request, target)
        self.failures.add(client)
        return self._page(request, "That did not match.")

    async def _take_key(self, bearer: str, client: str, path: str) -> Response | None:
        if self.login.is_token(bearer) or await run_in_threadpool(self.is_api_key, bearer):
            return None
        self.failures.add(client)
        return unauthorised(path)

    async def _target_of_form(self, request: Request) -> str:
        """Where the form wants to go; "" when its name and password don't match."""
        form = dict(parse_qsl((await _body(request, MAX_FORM_BYTES)).decode("utf-8", "replace")))
        if not self.login.is_person(form.get("name", ""), form.get("password", "")):
            return ""
        return own_path(form.get("next", "/"))

    def _ask(self, request: Request, path: str) -> Response:
        if path == "/login":
            return self._page(request)
        if path.startswith(("/api/", "/v1/")) or "text/html" not in request.headers.get("accept", ""):
            return unauthorised(path)
        here = _address(path, request.query_params.multi_items())
        login = "/login"
        if here != "/":
            login = _address(login, [("next", here)])
        return RedirectResponse(login, status_code=303)

    def _page(self, request: Request, problem: str = "") -> Response:
        target = own_path(request.query_params.get("next", "/"))
        return login_page(target, asks_name=bool(self.settings.users), problem=problem)

    def _welcome(self, request: Request, target: str) -> Response:
        answer = RedirectResponse(own_path(target), status_code=303)
        self._set_cookie(request, answer, self.login.new_session(), SESSION_S)
        return answer

    def _leave(self, request: Request, path: str) -> Response | None:
        """What /login and /logout do for somebody who is logged in."""
        if path == "/login":
            return RedirectResponse("/", status_code=303)
        if path != "/logout":
            return None
        answer = RedirectResponse("/login", status_code=303)
        self._set_cookie(request, answer, "", 0)
        return answer

    def _set_cookie(self, request: Request, answer: Response, value: str, max_age: int) -> None:
        is_space = bool(self.settings.space_host)  # shown inside huggingface.co, another site: only "none" works there
        same_site: Literal["none", "lax"] = "none" if is_space else "lax"
        is_secure = is_space or request.scope["scheme"] == "https"
        name = self.login.cookie
        answer.set_cookie(name, value, max_age=max_age, httponly=True, secure=is_secure, samesite=same_site)
        answer.headers["Cache-Control"] = "no-store"

    def _with_headers(self, send: Send) -> Send:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self.policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "same-origin"
            await send(message)

        return send_with_headers


class Login:
    """What counts as logged in: the token, a user's password, or a cookie signed by us."""

    def __init__(self, settings: Settings) -> None:
        self.token = settings.token
        self.users = dict(settings.users)
        # the port keeps two studios of one machine apart: cookies don't know ports
        self.cookie = f"studio_session_{settings.port}"
        # another token or other users end all sessions
        credentials = json.dumps([settings.token, settings.users]).encode()
        self._key = b""
        if settings.has_login:
            self._key = hmac.digest(_secret(settings.home / "session.secret"), credentials, "sha256")

    def is_token(self, token: str) -> bool:
        return bool(self.token) and _same(token, self.token)

    def is_person(self, name: str, password: str) -> bool:
        is_user = _same(password, self.users.get(name, secrets.token_hex())) and name in self.users
        return is_user or self.is_token(password)

    def new_session(self) -> str:
        expires = str(int(time.time()) + SESSION_S)
        return f"{expires}.{self._signature(expires)}"

    def is_session(self, cookie: str) -> bool:
        expires, _, signature = cookie.partition(".")
        return _same(signature, self._signature(expires)) and expires.isdigit() and int(expires) > time.time()

    def _signature(self, text: str) -> str:
        return base64.urlsafe_b64encode(hmac.digest(self._key, text.encode(), "sha256")).decode().rstrip("=")


class Failures:
    """Failed logins per client and of all together; kept in memory, bounded.

    Behind a proxy a client may lie about its address: then the limit for all is the one that holds.
    """

    MAX_CLIENTS = 10_000

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._all: deque[float] = deque(maxlen=MAX_ALL_FAILURES)
        self._seen: dict[str, deque[float]] = {}

    def add(self, client: str) -> None:
        if len(self._seen) >= self.MAX_CLIENTS:
            self._seen.pop(next(iter(self._seen)))
        for seen in (self._all, self._seen.setdefault(client, deque(maxlen=MAX_FAILURES))):
            seen.append(self._clock())

    def wait_s(self, client: str) -> int:
        """Whole seconds until this client may try again; 0 when it may now."""
        return max(self._wait(self._all), self._wait(self._seen.get(client, deque(maxlen=1))))

    def _wait(self, seen: deque[float]) -> int:
        if not seen or len(seen) < (seen.maxlen or 0):
            return 0
        left = seen[0] + FAILURE_WINDOW_S - self._clock()
        if left <= 0:
            return 0
        return int(left) + 1


def refusal(status: int, message: str, fix: str) -> Response:
    return JSONResponse({"error": {"message": message, "fix": fix}}, status_code=status)


def too_many_failures(wait_s: int) -> Response:
    answer = refusal(429, "Too many failed logins.", f"Try again in {wait_s} seconds.")
    answer.headers["Retry-After"] = str(wait_s)
    return answer


def unauthorised(path: str) -> Response:
    """401 in the shape its reader knows: OpenAI's for /v1, else ours."""
    text = "This studio asks for a login."
    fix = "Send Authorization: Bearer with STUDIO_TOKEN or a key made in the studio."
    error: dict[str, Any] = {"message": text, "fix": fix}
    if path.startswith("/v1/"):
        error = {
            "message": f"{text} {fix}",
            "type": "authentication_error",
            "param": None,
            "code": "invalid_api_key",
        }
    return JSONResponse({"error": error}, status_code=401, headers={"WWW-Authenticate": "Bearer"})


def may_name_folders(settings: Settings, scope: Scope) -> bool:
    """Whether the sender of a request may name folders of this machine: who runs the studio, on it, where nobody logs in."""
    if settings.has_login or settings.space_host:
        return False
    host = Headers(scope=scope).get("host", "")  # another name: the request came through a tunnel
    return is_loopback(_host_name(host)) and peers.is_own_user(scope)


def is_loopback(name: str) -> bool:
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def own_path(target: str) -> str:
    """`target` if it is a path of this site, else "/": a login must not lead to another one."""
    is_own = target.startswith("/") and not target.startswith(("//", "/\\"))
    is_plain = all(32 <= ord(character) < 127 for character in target)
    if not is_own or not is_plain or target.startswith("/login"):
        return "/"
    return target


def login_page(target: str, *, asks_name: bool, problem: str = "") -> Response:
    """A page of its own: it must work before anything of the studio is shown."""
    page = _templates.get_template("login.html").render(target=target, asks_name=asks_name, problem=problem)
    status = 401 if problem else 200
    return HTMLResponse(page, status_code=status, headers={"Cache-Control": "no-store"})


def _secret(path: Path) -> bytes:
    """The signing secret of this STUDIO_HOME; made once, readable by its owner only."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(secrets.token_bytes(32))
    try:
        os.link(part, path)  # the first of two processes wins, whole
    except FileExistsError:
        pass
    finally:
        part.unlink()
    return path.read_bytes()


def _address(path: str, query: list[tuple[str, str]]) -> str:
    if not query:
        return quote(path)
    return f"{quote(path)}?{urlencode(query)}"


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _content_length(headers: Headers) -> int:
    text = headers.get("content-length", "")
    if not text.isdecimal():
        return 0
    return int(text)


async def _body(request: Request, limit: int) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            return b""
    return body
