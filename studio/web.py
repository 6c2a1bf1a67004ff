"""The web process: `python -m studio.web`. Services over HTTP, the page at `/`, one gate in front. No torch, ever.

Answers /health at once; gradio takes seconds to import, so the page is built beside the server and its requests wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shutil
import socket
import sys
import tempfile
from argparse import ArgumentParser
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from studio import __version__, api, connections, lifeline, privacy
from studio import settings as studio_settings
from studio.api.forwarding import TIMEOUT
from studio.auth import Gate
from studio.errors import StudioError, one_line
from studio.login import Login
from studio.records import EngineState, Health, HealthStatus, PageHealth, PageState
from studio.services import Studio
from studio.settings import Settings

BUSY_S = 5.0  # that a request waits for a database which another program holds
SHUTDOWN_S = 3  # open pages hold a stream each, which never ends by itself
# of an absolute path, up to its last name: between quotes with all its spaces, elsewhere up to a space. Not of a URL.
FOLDERS = re.compile(r"""(?<=['"])/[^'"]*/|(?<![^\s(=\[,:])/(?:[^\s/'"]+/)+""")

log = logging.getLogger(__name__)


def create_app(settings: Settings) -> FastAPI:
    """The whole site. Opens the studio of `settings`; raises StudioError when that can't be done."""
    studio = Studio.open(settings)
    studio.db.wait_at_most(BUSY_S)
    page = PageApp(lambda: _build_page(studio, settings.cache / "gradio"))
    studio.system.watch_page(lambda: page.health)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with httpx.AsyncClient(timeout=TIMEOUT, trust_env=False) as app.state.engine, page.serving():
            yield

    app = FastAPI(
        title="Adapter Studio",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        lifespan=lifespan,
    )
    app.state.studio = studio
    app.add_api_route("/health", lambda: _health(studio, page), methods=["GET"], include_in_schema=False)
    api.add_routes(app)
    app.mount("/", page)
    app.add_middleware(api.openai.ClientPaths)
    studio.sessions.sweep()
    app.add_middleware(Gate, settings=settings, login=Login(settings, studio.sessions, studio.keys))
    return app


def _health(studio: Studio, page: PageApp) -> JSONResponse:
    """503 where the page can't be built: a health check then sees what a visitor would."""
    status, code = HealthStatus.OK, 200
    if page.health.state == PageState.FAILED:
        status, code = HealthStatus.FAILED, 503
    found = Health(
        status=status,
        version=__version__,
        engine=_engine_state(studio),
        page=page.health.state,
        reason=without_folders(page.health.reason) or None,
    )
    return JSONResponse(found.model_dump(mode="json", exclude_none=True), code)


def _engine_state(studio: Studio) -> EngineState:
    engine = studio.system.engine()
    if not engine.ok:
        return EngineState.STARTING
    if engine.loading:
        return EngineState.LOADING
    return EngineState.READY


class PageApp:
    """An ASGI app that is built by `build` in a thread while the server already runs; requests wait for it."""

    def __init__(self, build: Callable[[], FastAPI]) -> None:
        self._build = build
        self._site: ASGIApp | None = None
        self.health = PageHealth(state=PageState.STARTING)
        self._built = asyncio.Event()
        self._stopping = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        running = asyncio.create_task(self._run())
        try:
            yield
        finally:
            self._stopping.set()
            await running

    async def _run(self) -> None:
        try:
            site = await run_in_threadpool(self._build)
            async with site.router.lifespan_context(site):
                self._site = site
                self.health = PageHealth(state=PageState.READY)
                self._built.set()
                await self._stopping.wait()
        except Exception as exc:  # the edge of the page: /api and /v1 go on without it
            log.exception("The page could not be built.")
            reason = one_line(exc)
            text = f"The page could not be built ({reason}). The web log in STUDIO_HOME/logs says more."
            self._site = PlainTextResponse(text, status_code=503)
            self.health = PageHealth(state=PageState.FAILED, reason=reason)
            self._built.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._built.wait()
        assert self._site is not None
        await self._site(scope, receive, send)


def without_folders(text: str) -> str:
    """`text` with only the last name of each absolute path: /health is answered without a login."""
    return FOLDERS.sub("", text)


def _build_page(studio: Studio, uploads: Path) -> FastAPI:
    """The page over `studio`; what visitors upload lies in `uploads` while they have the page open."""
    _prepare_gradio(uploads)
    import gradio

    from studio import ui

    site = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    limits: dict[str, Any] = {
        "max_file_size": studio.settings.max_upload_bytes,
        "allowed_paths": None,
        "pwa": False,
        "mcp_server": False,
    }
    page = ui.build(studio)
    # Gradio checks the path of a file value only for a page that has been launched, and mounting never says so:
    # without this a forged value makes it copy, and serve, any file that this process can read.
    page.has_launched = True
    return gradio.mount_gradio_app(site, page, "/", **{**ui.launch_options(), **limits})


def _prepare_gradio(uploads: Path) -> None:
    """What gradio reads while it is imported: no analytics, a folder of ours for uploads, no stub files."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    shutil.rmtree(uploads, ignore_errors=True)  # of pages that nobody has open any more
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    if "gradio" not in sys.modules:
        sys.meta_path.insert(0, _WithoutItsManual())


class _WithoutItsManual(MetaPathFinder):
    """Import gradio without what it does for its own developers, two thirds of the seven seconds that takes.

    It rewrites .pyi files beside its sources and renders a docstring for every event of every component.
    """

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        disarm = {"gradio.component_meta": _skip_stub_files, "gradio.events": _skip_docstrings}.get(fullname)
        if disarm is None:
            return None
        spec = PathFinder.find_spec(fullname, path)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_disarm(module: ModuleType) -> None:
            execute(module)
            disarm(module)

        spec.loader.exec_module = execute_and_disarm  # type: ignore[method-assign]
        return spec


def _skip_stub_files(component_meta: Any) -> None:
    component_meta.create_or_modify_pyi = lambda *_: None


def _skip_docstrings(events: Any) -> None:
    events.EventListener.set_doc = lambda *_, **__: None


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM, or until the parent is gone. `--fd` is a socket that the parent listens on already."""
    parser = ArgumentParser(prog="python -m studio.web")
    parser.add_argument("--fd", type=int)
    parser.add_argument(
        "--try-page",
        action="store_true",
        help="build the page, say in one line what is wrong with it, and end",
    )
    options = parser.parse_args(arguments)
    if options.try_page:
        sys.exit(try_page())
    lifeline.end_with_parent(grace_s=SHUTDOWN_S + 2)
    privacy.keep_private()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = studio_settings.load()
        if not (settings.is_loopback or settings.has_login):
            raise StudioError(
                f"{settings.host} can be reached by others.",
                "Start it with `studio up`, or set STUDIO_TOKEN or STUDIO_USERS.",
            )
        app = create_app(settings)
    except (StudioError, ValueError) as exc:
        print(exc, file=sys.stderr)
        sys.exit(lifeline.EXIT_MUST_CHANGE)
    logging.getLogger("asyncio").addFilter(connections.OnceAMinute())
    most = max(connections.raise_file_limit() - connections.RESERVED_FILES, 32)
    config = uvicorn.Config(
        app,
        http=connections.limited(connections.Connections(most, proxies=settings.trusted_proxies)),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
    )
    uvicorn.Server(config).run(sockets=_sockets(options.fd))


def _sockets(fd: int | None) -> list[socket.socket] | None:
    if fd is None:
        return None
    return [socket.socket(fileno=fd)]


def try_page() -> int:
    """Exit code 0 where the page can be built; else 1, and the reason on stderr. For `studio doctor`."""
    lifeline.end_with_parent()
    try:
        with tempfile.TemporaryDirectory() as uploads:
            _build_page(Studio.open(studio_settings.load()), Path(uploads))
    except Exception as exc:  # noqa: BLE001 - the edge of this process: any error is the answer
        print(one_line(exc), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    main()
