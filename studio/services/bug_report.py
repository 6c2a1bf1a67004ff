"""The file that `studio doctor --report` writes for a bug report: readable, without rows, prompts or secrets.

Messages of errors may quote rows or prompts, so they are cut where a quotation could begin. The file says so.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import select

from studio import __version__, privacy
from studio.db.models import JobRow
from studio.db.session import Database
from studio.errors import StudioError
from studio.records import BugReport, DoctorCheck, JobStatus
from studio.running import running
from studio.settings import PACKAGE_ROOT, Settings, checkout

PACKAGES = (
    "accelerate", "alembic", "bitsandbytes", "datasets", "fastapi", "gradio", "huey", "huggingface-hub", "llmlingua", "numpy",
    "peft", "pydantic", "safetensors", "sqlalchemy", "starlette", "tokenizers", "torch", "transformers", "trl", "uvicorn",
)  # fmt: skip
LOG_BYTES, ERRORS_PER_LOG, FAILED_JOBS = 262_144, 5, 10
MIN_SECRET = 4  # anything shorter is found in ordinary words
SECRET_NAME = re.compile(r"TOKEN|KEY|PASSWORD|PASSWD|SECRET|CREDENTIAL", re.I)
SECRET_FORMS = re.compile(r"\b(?:hf_|sk-|studio-)[A-Za-z0-9_-]{8,}|(?<=://)[^/\s@]+(?=@)")
QUOTATION = re.compile(r"""[:'"“‘«`{\[]""")  # what a message quotes begins behind one of these
LOGGED = re.compile(r"^(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\S* (?:(?:ERROR|CRITICAL) \S+: |\S+ (?:ERROR|CRITICAL) )(?P<text>.*)")
FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<name>\S+)')
RAISED = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?:: (?P<text>.*))?$")
TELLING = ("ModuleNotFoundError", "ImportError", "NameError")  # their messages hold names of code alone
ERROR_TYPE = re.compile(r"\b[A-Z]\w*(?:Error|Exception|Warning|Interrupt)\b")


def write(settings: Settings, db: Database, checks: list[DoctorCheck], to: Path) -> BugReport:
    """Write the report to the new file `to`. Raises StudioError where that can't be done."""
    text = _without_secrets(_text(settings, db, checks), settings)
    try:
        with to.open("x", encoding="utf-8") as file:
            file.write(text)
        privacy.hand_out(to)
    except FileExistsError:
        raise StudioError(f"{to} is there already.", "Name a file that is not there yet.") from None
    return BugReport(path=str(to.absolute()), bytes=len(text.encode()))


def _text(settings: Settings, db: Database, checks: list[DoctorCheck]) -> str:
    sections = [
        ("Checks", [_check_line(check) for check in checks]),
        ("Versions", list(_versions())),
        ("Settings", [f"{name}: {value}" for name, value in shown_settings(settings).items()]),
        (f"Failed jobs, the last {FAILED_JOBS}", list(_failed_jobs(db)) or ["none"]),
        (
            f"Errors in the logs, the last {ERRORS_PER_LOG} of each",
            list(_log_errors(settings.logs)) or ["none"],
        ),
    ]
    parts = ["\n".join([f"Adapter Studio {__version__}, {_utc(time.time())}", *NOTE])]
    parts += ["\n".join([f"## {title}", "", *lines]) for title, lines in sections]
    return "\n\n".join(parts) + "\n"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


NOTE = [
    "No rows, prompts, names of jobs or secrets are in this file. Messages of errors are cut (…) where they could",
    "quote a row; the whole of them is in STUDIO_HOME/logs and in `studio jobs show ID`.",
    "Please read this file before you send it.",
]


def _check_line(check: DoctorCheck) -> str:
    mark = {True: "ok", False: "NO"}[check.ok]
    return ". ".join(filter(None, [f"{mark} {check.name}: {check.detail}", check.fix]))


def _versions() -> Iterator[str]:
    source = "a checkout"
    if checkout() is None:
        source = "an installed wheel"
    yield f"studio: {__version__} from {source}"
    yield f"python: {platform.python_version()} ({platform.python_implementation()}) at {sys.executable}"
    yield f"platform: {platform.platform()}, {platform.machine()}, {os.cpu_count()} cores"
    for name in PACKAGES:
        try:
            yield f"{name}: {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            yield f"{name}: not installed"


def shown_settings(settings: Settings) -> dict[str, str]:
    """Every setting; of a secret only whether it is set."""
    return {
        "home": str(settings.home),
        "db_url": _address(settings.db_url),
        "host": settings.host,
        "port": str(settings.port),
        "token": _whether_set(settings.token),
        "local_token": _whether_set(settings.local_token),
        "users": f"{len(settings.users)} set",
        "engine_url": _address(settings.engine_url),
        "engine_key": _whether_set(settings.engine_key),
        "test_data": str(settings.test_data),
        "max_upload_bytes": str(settings.max_upload_bytes),
        "sqlite_journal": settings.sqlite_journal,
        "allowed_hosts": f"{len(settings.allowed_hosts)} set",
        "allowed_origins": f"{len(settings.allowed_origins)} set",
        "trusted_proxies": f"{len(settings.trusted_proxies)} set",
        "space_host": _whether_set(settings.space_host),
        "hub_offline": str(settings.hub_offline),
        "adapter_memory_bytes": str(settings.adapter_memory_bytes),
        "kv_cache_bytes": str(settings.kv_cache_bytes),
        "api_keys": f"{len(settings.api_keys)} set",
    }


def _whether_set(value: str) -> str:
    return "set" if value else "not set"


def _address(url: str) -> str:
    """Scheme, host and port; a URL may hold a password before them and a key behind them."""
    if not url or url.startswith("sqlite"):
        return url or "not set"
    parts = urlsplit(url)
    if parts.port is None:
        return f"{parts.scheme}://{parts.hostname or ''}"
    return f"{parts.scheme}://{parts.hostname or ''}:{parts.port}"


def _failed_jobs(db: Database) -> Iterator[str]:
    with db.read() as session:
        failed = select(JobRow).where(JobRow.status == JobStatus.FAILED).order_by(JobRow.ended_at.desc())
        for job in session.scalars(failed.limit(FAILED_JOBS)):
            cause = job.cause or "no known cause"
            head = f"{job.id} ({job.kind}, attempt {job.attempt}) {_utc(job.ended_at or 0)}"
            yield f"{head}: {cause}. {unquoted(job.reason)}".rstrip()


def unquoted(message: str) -> str:
    """`message` up to where a quotation could begin, and the type of the error that it names."""
    line = " ".join(message.split())
    found = QUOTATION.search(line)
    if found is None:
        return line[:300]
    kept = line[: found.start()].rstrip()
    named = ERROR_TYPE.match(line[found.end() :].lstrip())
    return " ".join(filter(None, [kept, named and f"({named[0]})", "…"]))


def _log_errors(folder: Path) -> Iterator[str]:
    for log in sorted(folder.glob("*.log")):
        found = list(_errors(_end_of(log).splitlines()))
        for error in found[-ERRORS_PER_LOG:]:
            yield f"{log.name}: {error}"
        if len(found) > ERRORS_PER_LOG:
            yield f"{log.name}: {len(found) - ERRORS_PER_LOG} earlier ones are left out"


def _errors(lines: list[str]) -> Iterator[str]:
    """Logged errors, and tracebacks as the type of the error and the place where it was raised."""
    frame: re.Match[str] | None = None
    for line in lines:
        if logged := LOGGED.match(line):
            yield f"{logged['at']} {unquoted(logged['text'])}"
        elif place := FRAME.match(line):
            frame = place
        elif frame is not None and (raised := RAISED.match(line)):
            yield f"{_raised(raised)} at {_place(frame)}"
            frame = None


def _raised(found: re.Match[str]) -> str:
    name = found["type"].rpartition(".")[2]
    if name in TELLING:
        return f"{name}: {(found['text'] or '')[:200]}"
    return name


def _place(frame: re.Match[str]) -> str:
    """The file without the folders above this installation, the line, and the function."""
    file = frame["file"].removeprefix(f"{PACKAGE_ROOT}{os.sep}")
    short = os.sep.join(file.split(os.sep)[-4:])
    return f"{short}:{frame['line']} in {frame['name']}"


def _end_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - LOG_BYTES, 0))
            return file.read().decode("utf-8", "replace")
    except OSError:  # rotated while we look
        return ""


def _without_secrets(text: str, settings: Settings) -> str:
    """The last guard: whatever is known to be a secret, or looks like one, is blotted out wherever it stands."""
    known = {settings.token, settings.local_token, settings.engine_key}
    if found := running(settings):
        known.add(found.engine_key)
    known |= {password for _, password in settings.users} | {key for _, key in settings.api_keys}
    known |= {value for name, value in os.environ.items() if SECRET_NAME.search(name)}
    for url in (settings.db_url, settings.engine_url):
        known |= {urlsplit(url).password or "", urlsplit(url).username or ""}
    for secret in sorted(known, key=len, reverse=True):
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, "[secret]")
    text = SECRET_FORMS.sub("[secret]", text)
    return text.replace(str(Path.home()), "~")
