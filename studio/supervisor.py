"""`studio up`: the page, the engine and the workers as child processes, started, watched, restarted and ended together.

Knows nothing of what they do. A command that needs a worker or the engine gets them from here too (`assistance`):
those of the running studio, else children of its own for as long as it runs.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import psutil

from studio import lifeline, processes
from studio.catalogue import hardware
from studio.errors import StudioError
from studio.settings import Settings

GRACE_S, KILLED_WITHIN_S = 8.0, 1.5  # from TERM to KILL, and from there to the end of waiting
QUICK_DEATH_S, MAX_QUICK_DEATHS, DEATHS_WINDOW_S = 10.0, 3, 600.0
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 5.0
PAGE_FIRST_S = 5.0  # the page starts alone for so long at most: on two cores five imports at once make everyone late
SLOW_START_S = 60.0
MAX_LOG_BYTES = 5_000_000
TICK_S = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Running:
    """The studio that runs in a STUDIO_HOME, as studio.json beside its lock tells it."""

    pid: int
    born: float
    url: str
    engine_url: str
    engine_key: str
    started: float


class Child:
    """One process that should always be there: `python -m MODULE …`, its log, and how often it died young."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], logs: Path, fds: Sequence[int] = ()) -> None:
        self.name = name
        self.log = logs / f"{name}.log"
        self.is_given_up = False
        self._command = processes.module_command(*command)
        self._environment = dict(environment)
        self._fds = tuple(fds)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = self._due = 0.0
        self._quick_deaths: deque[float] = deque()

    def start(self) -> None:
        if self.log.exists() and self.log.stat().st_size > MAX_LOG_BYTES:
            self.log.replace(self.log.with_suffix(".old.log"))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,  # never written to: its end tells the child that we are gone
                stdout=log,
                stderr=log,
                env=self._environment,
                pass_fds=self._fds,
                start_new_session=True,  # Ctrl-C reaches us alone
                preexec_fn=lifeline.ask_for_death_signal if sys.platform == "linux" else None,
            )
        self._started = time.monotonic()

    @property
    def exit_code(self) -> int | None:
        """None while it runs, and before it has ever run."""
        return self._process.poll() if self._process else None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self.exit_code is None else None

    def tend(self, say: Say) -> None:
        """Restart the process when it has ended: at once the first time, later when it dies young, at last no more if it ends itself."""
        now = time.monotonic()
        code = self.exit_code
        if self._process is None or code is None or self.is_given_up:
            return
        if self._due == 0.0:
            self._judge(now, code, say)
        elif now >= self._due:
            self._due = 0.0
            self.start()

    def _judge(self, now: float, code: int, say: Say) -> None:
        self.close()
        if code == lifeline.EXIT_MUST_CHANGE:
            self.is_given_up = True
            say(self.last_words())
            return
        if now - self._started < QUICK_DEATH_S:
            self._quick_deaths.append(now)
        while self._quick_deaths and now - self._quick_deaths[0] > DEATHS_WINDOW_S:
            self._quick_deaths.popleft()
        is_own_fault = code > 0  # a signal came from outside (out of memory, a person): what is killed may always come back
        if is_own_fault and len(self._quick_deaths) > MAX_QUICK_DEATHS:
            self.is_given_up = True
            say(f"The {self.name} process ends right after each start (exit {code}) and is left out. {self.log} says why.")
            return
        self._due = now + min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 4 ** len(self._quick_deaths))

    def last_words(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else f"The {self.name} process ended without a word."

    def send(self, number: int) -> None:
        if self.pid is not None:
            os.kill(self.pid, number)

    def close(self) -> None:
        """Let go of a process that has ended, or is ending: its first thread may be gone some time before the others."""
        if self._process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=KILLED_WITHIN_S)
        if self._process.returncode is not None and self._process.stdin is not None:
            self._process.stdin.close()


class Children:
    """All child processes of one studio, or of one command."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._children: list[Child] = []

    def start(self, child: Child) -> Child:
        child.start()
        self._children.append(child)
        return child

    def tend(self) -> None:
        for child in self._children:
            child.tend(self._say)

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """TERM to all; whatever of them, or of what they started, still runs after GRACE_S or when told to hurry is killed."""
        deadline = time.monotonic() + GRACE_S
        family = self._family()
        for child in self._children:
            child.send(signal.SIGTERM)
        while time.monotonic() < deadline and not hurry() and any(_runs(process) for process in family):
            time.sleep(0.05)
        left = [process for process in {*family, *self._family()} if _runs(process)]
        for process in left:
            with contextlib.suppress(psutil.Error):  # it ended meanwhile
                process.kill()
        while time.monotonic() < deadline + KILLED_WITHIN_S and any(_runs(process) for process in left):
            time.sleep(0.05)
        for child in self._children:
            child.close()

    def _family(self) -> set[psutil.Process]:
        """The children that run, and all that they started: a trainer leads a process group of its own."""
        found: set[psutil.Process] = set()
        for pid in [child.pid for child in self._children]:
            with contextlib.suppress(psutil.Error):
                if pid is not None:
                    process = psutil.Process(pid)
                    found |= {process, *process.children(recursive=True)}
        return found


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def up(settings: Settings, say: Say) -> None:
    """Run the studio until SIGTERM or Ctrl-C. `say` prints one line. Raises StudioError: running already, port taken, no page."""
    settings.make_folders()
    lock = filelock.FileLock(settings.lock_path, mode=0o600)
    try:
        lock.acquire(timeout=0.5)
    except filelock.Timeout:
        found = running(settings)
        where = f" at {found.url}" if found else ""
        raise StudioError(
            f"A studio of {settings.home} is running already{where}.", "Open that one, or set STUDIO_HOME to another folder."
        ) from None
    with lock:
        if (settings.home / "restore.json").exists():
            from studio.services import restoring

            say(restoring.undo(settings))
        Supervisor(settings, say).run()


class Supervisor:
    """One run of `studio up`, from the lock to the last child's end."""

    def __init__(self, settings: Settings, say: Say) -> None:
        self._say = say
        self._socket = _listen(settings)
        port = int(self._socket.getsockname()[1])
        token = "" if settings.has_login or settings.is_loopback else secrets.token_urlsafe(24)
        self._own_token = token
        self.settings = replace(_with_engine(settings), port=port, token=settings.token or token)
        self._has_own_engine = not settings.engine_url
        self._children = Children(say)
        self._signals = 0

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT, *((signal.SIGHUP,) if hasattr(signal, "SIGHUP") else ())):
            signal.signal(number, self._on_signal)
        place = self.settings.home / "studio.json"
        try:
            _write_private(place, asdict(self._running()))
            self._serve()
        finally:
            self._children.stop(hurry=lambda: self._signals > 1)
            self._socket.close()
            place.unlink(missing_ok=True)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals += 1

    def _serve(self) -> None:
        started = time.monotonic()
        web = self._children.start(self._web())
        is_up = has_others = is_late = False
        while not self._signals:
            waited = time.monotonic() - started
            if not is_up and (is_up := answers(self._url())):
                self._announce()
            if not has_others and (is_up or waited > PAGE_FIRST_S):
                has_others = True
                self._start_others()
            if not is_up and not is_late and (is_late := waited > SLOW_START_S):
                self._say(f"The page does not answer yet; {web.log} says why.")
            self._children.tend()
            if web.is_given_up:
                raise StudioError("The studio ended because its page can't run.", f"{web.log} says why.")
            time.sleep(TICK_S)

    def _web(self) -> Child:
        fd = self._socket.fileno()  # the port is ours as long as we live: a page that restarts keeps its callers waiting, not refused
        return self._child("web", ["studio.web", "--fd", str(fd)], fds=[fd])

    def _start_others(self) -> None:
        if self._has_own_engine:
            self._children.start(self._child("engine", engine_command(self.settings)))
        for queue in ("gpu", "light"):
            self._children.start(self._child(f"worker-{queue}", ["jobs.worker", "--queue", queue]))

    def _child(self, name: str, command: Sequence[str], fds: Sequence[int] = ()) -> Child:
        return Child(name, command, environment(self.settings, name), self.settings.logs, fds)

    def _url(self) -> str:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self.settings.host, self.settings.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.settings.port}"

    def _announce(self) -> None:
        self._say(f"Adapter Studio: {self._url()}/" + (f"?token={self._own_token}" if self._own_token else ""))
        if self._own_token:
            self._say(f"Others may open it too, as {self.settings.host} is not this machine alone; this address lets in whoever has it.")

    def _running(self) -> Running:
        pid = os.getpid()
        return Running(pid, processes.born(pid) or 0.0, self._url(), self.settings.engine_url, self.settings.engine_key, time.time())


def running(settings: Settings) -> Running | None:
    """The studio that runs in this STUDIO_HOME, perhaps still starting; None when there is none."""
    try:
        found = Running(**json.loads((settings.home / "studio.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    return found if processes.is_alive(found.pid, found.born) else None


@contextmanager
def assistance(settings: Settings, say: Say, *, queues: Sequence[str] = (), engine: bool = False) -> Iterator[Settings]:
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
    settings = _with_engine(settings) if engine else settings
    children = Children(say)
    ending = threading.Event()

    def keep() -> None:
        while not ending.wait(TICK_S):
            children.tend()

    keeper = threading.Thread(target=keep, name="keeper", daemon=True)
    try:
        if own_engine:
            children.start(Child("engine", engine_command(settings), environment(settings, "engine"), settings.logs))
        for queue in queues:
            name = f"worker-{queue}"
            # for one command a trainer that is kept ready for the next job would be work for nobody
            children.start(Child(name, ["jobs.worker", "--keep-none-ready", "--queue", queue], environment(settings, name), settings.logs))
        keeper.start()
        yield settings
    finally:
        ending.set()
        if keeper.ident is not None:
            keeper.join(timeout=1)
        children.stop()


def environment(settings: Settings, name: str) -> dict[str, str]:
    """What a child sees: our environment, the settings as they are now, and its share of the threads."""
    env = {
        **os.environ,
        "STUDIO_HOME": str(settings.home),
        "STUDIO_DB_URL": settings.db_url,
        "STUDIO_HOST": settings.host,
        "STUDIO_PORT": str(settings.port),
        "STUDIO_TOKEN": settings.token,
        "STUDIO_ENGINE_URL": settings.engine_url,
        "STUDIO_ENGINE_KEY": settings.engine_key,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONUNBUFFERED": "1",
    }
    if name == "engine":
        env.setdefault("OMP_NUM_THREADS", str(hardware.thread_budget("engine")))
        env.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # idle threads sleep instead of burning the trainer's core
    return env


def engine_command(settings: Settings) -> list[str]:
    return ["studio.engine.server", "--port", str(urlsplit(settings.engine_url).port)]


def answers(url: str) -> bool:
    """Whether the page of `url` answers its /health."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _wait_for(found: Running, limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not answers(found.url):
        if time.monotonic() > deadline or not processes.is_alive(found.pid, found.born):
            raise StudioError(f"The studio at {found.url} does not answer.", "Stop it and start it again with `studio up`.")
        time.sleep(0.25)


def _listen(settings: Settings) -> socket.socket:
    """The page's socket. Waits a moment for a studio that was killed a moment ago to let go of the port."""
    deadline = time.monotonic() + (3.0 if (settings.home / "studio.json").exists() else 0.0)
    try:
        family, kind, _, _, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise StudioError(f"{settings.host!r} is no address of this machine.", "Use 127.0.0.1, or 0.0.0.0 for all of them.") from None
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
    fix = f"Choose another one: studio up --port {settings.port + 1 if settings.port >= 1024 else 7860}."
    if isinstance(exc, PermissionError):
        return StudioError(f"Port {settings.port} needs rights that you don't have here.", fix)
    if "assign" in (exc.strerror or ""):
        return StudioError(f"{settings.host} is no address of this machine.", "Use 127.0.0.1, or 0.0.0.0 for all of them.")
    return StudioError(f"Port {settings.port} of {settings.host} is taken by another program.", fix)


def _with_engine(settings: Settings) -> Settings:
    """The engine that was named, else a free loopback port and a key for one of our own."""
    if settings.engine_url:
        return settings
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    return replace(settings, engine_url=url, engine_key=secrets.token_urlsafe(24))


def _write_private(path: Path, value: Mapping[str, object]) -> None:
    """Whole or not at all, readable by its owner only: it holds the engine's key."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        json.dump(value, file)
    part.replace(path)
