"""One gate in front of every route, Gradio's and ours: Host, Origin, size, login, headers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qsl, quote, urlencode

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from studio import origins, peers, scopes
from studio.failures import Failures, Turns, who
from studio.login import Login, login_page, own_path
from studio.records import Caller
from studio.services.sessions import SESSION_S
from studio.settings import Settings

MAX_BODY_BYTES = 64 * 1024**2  # of a request that is no upload: it is held in memory
FORM_OVERHEAD_BYTES = 1024**2  # what multipart adds around a file
MAX_FORM_BYTES = 10_000
OPEN_PATHS = ("/health",)
EXPOSED_HEADERS = ("Content-Disposition", "Retry-After", "Studio-Ignored")  # to scripts of other sites
LOOKUPS = 8  # at a time: they must not wait for the threads that answer requests

# gr.HTML templates need unsafe-eval and gradio's page unsafe-inline; this stops foreign code and sending data away
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; img-src 'self' data: blob:; "
    "style-src 'self' 'unsafe-inline'; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)

T = TypeVar("T")


class Gate:
    """ASGI middleware. Whoever passes is known to the routes as `request.state.caller`, a Caller."""

    def __init__(self, app: ASGIApp, settings: Settings, login: Login) -> None:
        self.app = app
        self.settings = settings
        self.login = login
        self.failures = Failures()
        self.turns = Turns()
        self.policy = CONTENT_SECURITY_POLICY
        if settings.space_host:  # shown inside a page of the hub
            self.policy += " https://huggingface.co"
        # for pages of other sites that were named: starlette's own answers to a browser's preliminary questions
        self.cors = CORSMiddleware(
            self._answer,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "POST", "DELETE", "HEAD"),
            allow_headers=("*",),  # clients add headers of their own
            expose_headers=EXPOSED_HEADERS,
            allow_private_network=True,
        )
        self._limiter: anyio.CapacityLimiter | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return  # no route here speaks WebSocket
        request = Request(scope, receive)
        send = self._with_headers(send)
        if refusal := self._refuse(request):
            await refusal(scope, receive, send)
        elif self._is_of_named_page(request):
            await self.cors(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        refusal = await self._ask_for_login(request)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self.app(scope, self._limited(request, receive), send)

    def _refuse(self, request: Request) -> Response | None:
        """Refuse another site's name (DNS rebinding), another site's page, and a body that is too large."""
        host = request.headers.get("host", "")
        if self.settings.is_loopback and not origins.is_own_name(self.settings, host):
            return refusal(
                403,
                f"This studio does not answer to the name {host[:100]!r}.",
                "Open it as 127.0.0.1, or list the name in STUDIO_ALLOWED_HOSTS.",
            )
        origin = request.headers.get("origin")
        if origin is not None and not (origins.is_own_origin(self.settings, origin, host) or self._is_of_named_page(request)):
            fix = "Open the studio's own address; for /v1 and /api a page may be named in STUDIO_ALLOWED_ORIGINS."
            return refusal(403, f"A page of {origin[:100]!r} may not use this studio.", fix)
        if _content_length(request.headers) > self._limit(request):
            return refusal(
                413,
                f"The request is larger than {self._limit(request):,} bytes.",
                "Send a smaller file, or raise STUDIO_MAX_UPLOAD_BYTES.",
            )
        return None

    def _is_of_named_page(self, request: Request) -> bool:
        """Whether a page of another site asks that may: scripts there use /v1 and /api, and nothing else."""
        if request.headers.get("origin", "").lower() not in self.settings.allowed_origins:
            return False
        return request.scope["path"].startswith(("/v1/", "/api/"))

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
        """None lets the request in: for a session, a token or key, a link with the token, or the login form."""
        path = request.scope["path"]  # never request.url: it is built from what the client says its host is
        if path in OPEN_PATHS:
            return None
        caller = None
        cookie = request.cookies.get(self.login.cookie, "")
        if cookie and not self._is_of_named_page(request):  # which has to send a key: the cookie is for our own page
            caller = await self._in_thread(self.login.by_session, cookie)
        link = request.query_params.get("token", "")
        if link and self.login.is_token(link):
            return await self._follow_link(request, caller)
        credentials = _credentials(request.headers)
        if caller is None and credentials:
            caller = await self._in_thread(self.login.by_key, credentials)
        if caller is None and self._needs_no_login(request):
            caller = Caller()
        if caller is not None:
            return await self._admit(request, caller)
        if path == "/login" and request.method == "POST":
            return await self._take_form(request)
        if not (credentials or link):
            return self._ask(request, path)
        return self._refuse_credential(request, path)

    def _needs_no_login(self, request: Request) -> bool:
        """Whether the user who runs this studio asks, on its machine, where nobody has to log in."""
        return is_own_user(self.settings, request.scope)

    async def _in_thread(self, look: Callable[..., T], *arguments: Any) -> T:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(LOOKUPS)
        return await anyio.to_thread.run_sync(partial(look, *arguments), limiter=self._limiter)

    async def _admit(self, request: Request, caller: Caller) -> Response | None:
        """Let `caller` in as far as their key goes; /login and /logout are answered here."""
        path, method = request.scope["path"], request.method
        if not scopes.allows(caller.scope, method, path):
            return _out_of_scope(path, caller)
        request.state.caller = caller
        if path == "/login":
            return RedirectResponse("/", status_code=303)
        if path != "/logout":
            return None
        if method != "POST":  # a link or an image on another page must not log anybody out
            answer = refusal(405, "A login ends with a POST to /logout.", "Use Log out on the page.")
            answer.headers["Allow"] = "POST"
            return answer
        if caller.session:
            await self._in_thread(self.login.sessions.log_out, caller.session)
        answer = RedirectResponse("/login", status_code=303)
        self._set_cookie(request, answer, "", 0)
        return answer

    async def _take_form(self, request: Request) -> Response:
        form = dict(parse_qsl((await _body(request, MAX_FORM_BYTES)).decode("utf-8", "replace")))
        name, password = form.get("name", ""), form.get("password", "")
        one = who(name, _address_of(request))
        if (wait_s := self.failures.wait_s(one)) and not await self.turns.take(one):
            return self._page(request, f"Too many logins at once. Try again in {wait_s} seconds.", 429)
        person = self.login.person(name, password)
        if person is not None:
            self.failures.forget(one)
            return await self._welcome(request, own_path(form.get("next", "/")), person)
        self.failures.add(one)
        if wait_s:
            answer = self._page(request, "That did not match. After so many failures each try takes a moment.", 429)
            answer.headers["Retry-After"] = str(wait_s)
            return answer
        return self._page(request, "That did not match.", 401)

    def _refuse_credential(self, request: Request, path: str) -> Response:
        one = who("", _address_of(request))
        wait_s = self.failures.wait_s(one)
        self.failures.add(one)
        if wait_s:
            return too_many_failures(wait_s)
        return self._unauthorised(path)

    def _ask(self, request: Request, path: str) -> Response:
        if path == "/login":
            return self._page(request)
        if path.startswith(("/api/", "/v1/")) or "text/html" not in request.headers.get("accept", ""):
            return self._unauthorised(path)
        here = _address(path, request.query_params.multi_items())
        login = "/login"
        if here != "/":
            login = _address(login, [("next", here)])
        return RedirectResponse(login, status_code=303)

    def _unauthorised(self, path: str) -> Response:
        if self.settings.has_login:
            return unauthorised(path)
        text = "Without a login this studio answers to programs of the user who runs it, and can't tell whose this one is."
        fix = "Open the address that `studio up` printed, or send a key made in the studio, as Authorization: Bearer or as X-Api-Key."
        return unauthorised(path, text, fix)

    def _page(self, request: Request, problem: str = "", status: int = 200) -> Response:
        target = own_path(request.query_params.get("next", "/"))
        return login_page(target, asks_name=bool(self.settings.users), problem=problem, status=status)

    async def _follow_link(self, request: Request, caller: Caller | None) -> Response:
        """The address that `studio up` printed: the browser is logged in, and the token leaves its address."""
        without_token = [(key, value) for key, value in request.query_params.multi_items() if key != "token"]
        target = own_path(_address(request.scope["path"], without_token))
        if caller is not None:
            return RedirectResponse(target, status_code=303)
        return await self._welcome(request, target, "")

    async def _welcome(self, request: Request, target: str, person: str) -> Response:
        agent = request.headers.get("user-agent", "")
        opening = partial(self.login.sessions.open, person, address=_address_of(request), agent=agent)
        answer = RedirectResponse(target, status_code=303)
        self._set_cookie(request, answer, await self._in_thread(opening), SESSION_S)
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


def refusal(status: int, message: str, fix: str) -> Response:
    return JSONResponse({"error": {"message": message, "fix": fix}}, status_code=status)


def too_many_failures(wait_s: int) -> Response:
    answer = refusal(429, "Too many failed logins.", f"Check the key; what is right is let in at once. Counted for {wait_s} more seconds.")
    answer.headers["Retry-After"] = str(wait_s)
    return answer


def unauthorised(
    path: str,
    text: str = "This studio asks for a login.",
    fix: str = "Send STUDIO_TOKEN or a key made in the studio, as Authorization: Bearer or as X-Api-Key.",
) -> Response:
    """401 in the shape its reader knows: OpenAI's for /v1, else ours."""
    answer = _refused(path, 401, text, fix, type_="authentication_error", code="invalid_api_key")
    answer.headers["WWW-Authenticate"] = "Bearer"
    return answer


def _out_of_scope(path: str, caller: Caller) -> Response:
    text = f"This key is for {caller.scope} only."
    fix = "Make another one with the scope that this takes: chat asks models, read looks at everything, everything does all."
    return _refused(path, 403, text, fix, type_="permission_error", code="insufficient_permissions")


def _refused(path: str, status: int, text: str, fix: str, *, type_: str, code: str) -> Response:
    if path.startswith("/v1/"):
        error = {"message": f"{text} {fix}", "type": type_, "param": None, "code": code}
        return JSONResponse({"error": error}, status_code=status)
    return refusal(status, text, fix)


def is_own_user(settings: Settings, scope: Scope) -> bool:
    """Whether whoever runs the studio has sent a request, on its machine and where nobody logs in. They may also name folders there."""
    if settings.has_login or settings.space_host:
        return False
    host = Headers(scope=scope).get("host", "")  # another name: the request came through a tunnel
    return origins.is_loopback(origins.host_name(host)) and peers.is_own_user(scope)


def _credentials(headers: Headers) -> list[str]:
    """What a program has sent as its key: some clients send two headers, one of them made up."""
    sent = [headers.get("authorization", "").partition(" ")[2].strip(), headers.get("x-api-key", "").strip()]
    return [text for text in sent if text]


def _address_of(request: Request) -> str:
    client, _ = request.scope.get("client") or ("", 0)
    return str(client)


def _address(path: str, query: list[tuple[str, str]]) -> str:
    if not query:
        return quote(path)
    return f"{quote(path)}?{urlencode(query)}"


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
