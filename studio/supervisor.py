"""`studio up`: the page, the engine and the workers as child processes, started, watched, restarted and ended.

A command that needs a worker or the engine gets them from here too (`assistance`): those of the running studio,
else children of its own for as long as it runs.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import filelock

from studio import peers, processes
from studio.catalogue import hardware
from studio.children import ChildProcess, Children, Say
from studio.errors import StudioError
from studio.records import PageState
from studio.running import Running, announce, health, running, was_killed, withdraw
from studio.settings import Settings
from studio.watch import HealthWatch, tell_waiting

PAGE_FIRST_S = 5.0  # the page starts alone for so long at most: on two cores five imports at once delay all
SLOW_START_S = 60.0
# the secrets that each child works with; no other reaches it
WORKING = ("STUDIO_DB_URL", "STUDIO_ENGINE_KEY", "STUDIO_API_KEYS")
NEEDED = {
    "web": (*WORKING, "STUDIO_TOKEN", "STUDIO_LOCAL_TOKEN", "STUDIO_USERS", *processes.HUB_TOKENS),
    "engine": ("STUDIO_ENGINE_KEY",),
    "worker-gpu": WORKING,
    "worker-light": WORKING,
}
TICK_S, LOOK_S = 0.1, 0.5
KILLED_A_MOMENT_AGO_S = 3.0
SHORT_TOKEN = 16  # characters: what is longer and random nobody guesses, however often they may try
OWN_ADDRESSES = "Use 127.0.0.1, or 0.0.0.0 for all of them."


def up(settings: Settings, say: Say) -> None:
    """Run the studio until SIGTERM or Ctrl-C. `say` prints one line.

    Raises StudioError where one runs already, the port is taken, or the page process can't run.
    """
    settings.make_folders()
    lock = filelock.FileLock(settings.lock_path, mode=0o600)
    try:
        lock.acquire(timeout=0.5)
    except filelock.Timeout:
        raise _running_already(settings) from None
    with lock:
        if (settings.home / "restore.json").exists():
            from studio.services import restoring

            say(restoring.undo(settings))
        settings.close_files()
        Supervisor(settings, say).run()


def _running_already(settings: Settings) -> StudioError:
    where = ""
    if found := running(settings):
        where = f" at {found.url}"
    problem = f"A studio of {settings.home} is running already{where}."
    return StudioError(problem, "Open that one, or set STUDIO_HOME to another folder.")


class Supervisor:
    """One run of `studio up`, from the lock to the last child's end."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._say = say
        self._socket = _listen(settings)
        port = int(self._socket.getsockname()[1])
        self._own_token = ""
        if not settings.has_login:
            self._own_token = secrets.token_urlsafe(24)
        self.settings = replace(_with_engine(settings), port=port)
        if not settings.is_loopback:
            self.settings = replace(self.settings, token=settings.token or self._own_token)
        elif self._own_token:  # for whoever is not known to be the user who runs it
            self.settings = replace(self.settings, local_token=self._own_token)
        self._has_own_engine = not settings.engine_url
        self._children = Children(say)
        self._watches: list[HealthWatch] = []
        self._signals = 0
        self._is_up = self._is_page_known = False
        self._next_look = 0.0

    def run(self) -> None:
        for name in ("SIGTERM", "SIGINT", "SIGHUP"):
            if hasattr(signal, name):  # Windows has no SIGHUP
                signal.signal(getattr(signal, name), self._on_signal)
        try:
            announce(self.settings, self._running())
            self._serve()
        finally:
            for watch in self._watches:
                watch.end()
            self._children.stop(hurry=lambda: self._signals > 1)
            self._socket.close()
            withdraw(self.settings)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _serve(self) -> None:
        started = time.monotonic()
        web = self._children.start(self._web())
        self._watch(web, self._url())
        has_others = is_late = False
        while not self._signals:
            waited = time.monotonic() - started
            self._look_at_page(web)
            if not has_others and (self._is_up or waited > PAGE_FIRST_S):
                has_others = True
                self._start_others()
            if not self._is_up and not is_late and waited > SLOW_START_S:
                is_late = True
                self._say(f"The page does not answer yet; {web.log} says why.")
            self._end_silent(web)
            self._children.tend()
            if web.is_given_up:
                raise StudioError("The studio ended because its page can't run.", f"{web.log} says why.")
            time.sleep(TICK_S)

    def _watch(self, child: ChildProcess, url: str) -> None:
        watch = HealthWatch(child, url)
        watch.start()
        self._watches.append(watch)

    def _end_silent(self, web: ChildProcess) -> None:
        """End what lives and does not answer; it is started anew as if it had died."""
        for watch in self._watches:
            if silent_s := watch.silence():
                self._say(f"The {watch.child.name} process has not answered for {silent_s:.0f} s and is started anew.")
                if watch.child is web:
                    tell_waiting(self._socket)
                self._children.kill(watch.child)

    def _look_at_page(self, web: ChildProcess) -> None:
        """Say where the studio answers once it does, and why its page can't be built where that is so."""
        if self._is_page_known or time.monotonic() < self._next_look:
            return
        found = health(self._url())
        if found is None:
            return
        self._next_look = time.monotonic() + LOOK_S
        if not self._is_up:
            self._is_up = True
            self._announce()
        if found.page == PageState.FAILED:
            rest = f"/api and /v1 answer without it; {web.log} says more."
            self._say(f"The page can't be built: {found.reason}. {rest}")
        self._is_page_known = found.page != PageState.STARTING
        if self._is_page_known:
            self._announce_to_others()

    def _web(self) -> ChildProcess:
        # the port is ours as long as we live: while the page restarts its callers wait, and are not refused
        fd = self._socket.fileno()
        return self._child("web", ["studio.web", "--fd", str(fd)], fds=[fd])

    def _start_others(self) -> None:
        if self._has_own_engine:
            self._watch(self._children.start(self._child("engine", engine_command(self.settings))), self.settings.engine_url)
        for queue in ("gpu", "light"):
            self._children.start(self._child(f"worker-{queue}", ["jobs.worker", "--queue", queue]))

    def _child(self, name: str, command: Sequence[str], fds: Sequence[int] = ()) -> ChildProcess:
        return ChildProcess(name, command, environment(self.settings, name), self.settings.logs, fds)

    def _url(self) -> str:
        own = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
        host = own.get(self.settings.host, self.settings.host)
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{self.settings.port}"

    def _announce(self) -> None:
        is_known = self.settings.is_loopback and peers.can_tell()  # that it is the person who started this
        if not self._own_token or is_known:
            self._say(f"Adapter Studio: {self._url()}/")
            if 0 < len(self.settings.token) < SHORT_TOKEN and not self.settings.is_loopback:
                self._say(f"STUDIO_TOKEN has fewer than {SHORT_TOKEN} characters: others can guess it. Set a longer one.")
            return
        self._say(f"Adapter Studio: {self._with_token()}")
        if not self.settings.is_loopback:
            reach = f"Others may open it too, as {self.settings.host} is not this machine alone"
            self._say(f"{reach}; this address lets in whoever has it.")

    def _announce_to_others(self) -> None:
        """Where the first address is for the person alone who started the studio."""
        if self.settings.local_token and peers.can_tell():
            self._say(f"For other users of this machine, and through a proxy or a tunnel: {self._with_token()}")

    def _with_token(self) -> str:
        return f"{self._url()}/?token={self._own_token}"

    def _running(self) -> Running:
        pid = os.getpid()
        return Running(
            pid,
            processes.born(pid) or 0.0,
            self._url(),
            self.settings.engine_url,
            self.settings.engine_key,
            time.time(),
        )


@contextmanager
def assistance(
    settings: Settings,
    say: Say,
    *,
    queues: Sequence[str] = (),
    engine: bool = False,
) -> Iterator[Settings]:
    """Settings under which jobs of `queues` run and, with `engine`, chats are answered, inside this block.

    Raises StudioError when a studio is starting here and does not answer within a minute.
    """
    found = running(settings)
    if found is not None:
        _wait_for(found)
        yield replace(settings, engine_url=found.engine_url, engine_key=found.engine_key)
        return
    settings.make_folders()  # this may be the first command of all
    own_engine = engine and not settings.engine_url
    if engine:
        settings = _with_engine(settings)
    children = Children(say)
    ending = threading.Event()

    def keep() -> None:
        while not ending.wait(TICK_S):
            children.tend()

    keeper = threading.Thread(target=keep, name="keeper", daemon=True)
    try:
        if own_engine:
            command = engine_command(settings)
            children.start(ChildProcess("engine", command, environment(settings, "engine"), settings.logs))
        for queue in queues:
            name = f"worker-{queue}"
            # for one command a trainer that is kept ready for the next job would be work for nobody
            children.start(
                ChildProcess(
                    name,
                    ["jobs.worker", "--keep-none-ready", "--queue", queue],
                    environment(settings, name),
                    settings.logs,
                )
            )
        keeper.start()
        yield settings
    finally:
        ending.set()
        if keeper.ident is not None:
            keeper.join(timeout=1)
        children.stop()


def environment(settings: Settings, name: str) -> dict[str, str]:
    """What a child sees: our environment and the settings as they are now, of secrets only those it needs; its share of the threads."""
    needed = NEEDED[name]
    secrets_now = {
        "STUDIO_DB_URL": settings.db_url,
        "STUDIO_TOKEN": settings.token,
        "STUDIO_LOCAL_TOKEN": settings.local_token,
        "STUDIO_ENGINE_KEY": settings.engine_key,
    }
    env = {
        **processes.environment_with(needed, for_loggers=name == "worker-gpu"),  # which hands them on to trainings
        **{key: value for key, value in secrets_now.items() if key in needed},
        "STUDIO_HOME": str(settings.home),
        "STUDIO_HOST": settings.host,
        "STUDIO_PORT": str(settings.port),
        "STUDIO_ENGINE_URL": settings.engine_url,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if name == "engine":
        env.setdefault("OMP_NUM_THREADS", str(hardware.thread_budget("engine")))
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep instead of burning the trainer's core
    return env


def engine_command(settings: Settings) -> list[str]:
    return ["studio.engine.server", "--port", str(urlsplit(settings.engine_url).port)]


def _wait_for(found: Running, limit_s: float = 60.0) -> None:
    """Wait until it answers. Its page does not matter: the engine and the workers run without one."""
    deadline = time.monotonic() + limit_s
    while health(found.url) is None:
        if time.monotonic() > deadline or not found.is_alive:
            fix = "Stop it and start it again with `studio up`."
            raise StudioError(f"The studio at {found.url} does not answer.", fix)
        time.sleep(0.25)


def _listen(settings: Settings) -> socket.socket:
    """The page's socket. Waits a moment for a studio that was killed a moment ago to let go of the port."""
    deadline = time.monotonic()
    if was_killed(settings):
        deadline += KILLED_A_MOMENT_AGO_S
    try:
        found = socket.getaddrinfo(
            settings.host,
            settings.port,
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
    except OSError:
        raise StudioError(f"{settings.host!r} is no address of this machine.", OWN_ADDRESSES) from None
    family, kind, _, _, address = found[0]
    while True:
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
            return listener
        except OSError as exc:
            listener.close()
            if time.monotonic() > deadline:
                raise _port_error(settings, exc) from None
        time.sleep(0.1)


def _port_error(settings: Settings, exc: OSError) -> StudioError:
    other = settings.port + 1
    if settings.port < 1024:
        other = 7860
    fix = f"Choose another one: studio up --port {other}."
    if isinstance(exc, PermissionError):
        return StudioError(f"Port {settings.port} needs rights that you don't have here.", fix)
    if "assign" in (exc.strerror or ""):
        return StudioError(f"{settings.host} is no address of this machine.", OWN_ADDRESSES)
    return StudioError(f"Port {settings.port} of {settings.host} is taken by another program.", fix)


def _with_engine(settings: Settings) -> Settings:
    """The engine that was named, else a free loopback port and a key for one of our own."""
    if settings.engine_url:
        return settings
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    return replace(settings, engine_url=url, engine_key=secrets.token_urlsafe(24))
