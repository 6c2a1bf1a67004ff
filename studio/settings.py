"""The settings of one studio, read once from the environment. Every folder of STUDIO_HOME is named here."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import platformdirs

from studio import privacy
from studio.errors import StudioError

PACKAGE_ROOT = Path(__file__).resolve().parent.parent  # holds studio and jobs: a checkout, or site-packages


def static_folder() -> Path:
    """Starter, demo rows, question sets, icons, styles: studio/static of a wheel, else `static` of the checkout."""
    installed = PACKAGE_ROOT / "studio" / "static"
    if installed.is_dir():
        return installed
    return PACKAGE_ROOT / "static"


def checkout() -> Path | None:
    """The checkout that this process runs from; None when it runs from an installed wheel."""
    if (PACKAGE_ROOT / "pyproject.toml").is_file():
        return PACKAGE_ROOT
    return None


STATIC = static_folder()
COPIES = "quantised"  # the folder of a home with copies of bases in 4 bits


@dataclass(frozen=True)
class Settings:
    """What `load` found. Paths are absolute. What is left out of its repr may hold a secret."""

    home: Path
    db_url: str = field(repr=False)
    host: str
    port: int
    token: str = field(repr=False)
    local_token: str = field(repr=False)  # without a login: for whoever is not the user who runs the studio; `studio up` makes one
    users: tuple[tuple[str, str], ...] = field(repr=False)
    engine_url: str  # external engine; "" means our own
    engine_key: str = field(repr=False)  # key of the engine named by engine_url
    test_data: Path
    max_upload_bytes: int
    sqlite_journal: str
    allowed_hosts: tuple[str, ...]  # names besides this machine's own under which the page may be opened
    allowed_origins: tuple[str, ...]  # pages of other sites whose scripts may use /v1 and /api
    trusted_proxies: tuple[str, ...]  # addresses and networks whose X-Forwarded headers count
    space_host: str  # the name Hugging Face Spaces gives this studio; "" elsewhere
    hub_offline: bool
    adapter_memory_bytes: int  # for adapters in the engine; 0 takes a quarter of what the base leaves free
    kv_cache_bytes: int  # for keys and values of answers in the engine; 0 takes what is free
    api_keys: tuple[tuple[str, str], ...] = field(repr=False)  # (start of a URL, key) for other engines that ask for one

    @property
    def queue_path(self) -> Path:
        return self.home / "queue.db"

    @property
    def datasets(self) -> Path:
        return self.home / "datasets"

    @property
    def runs(self) -> Path:
        return self.home / "runs"

    @property
    def adapters(self) -> Path:
        return self.home / "adapters"

    @property
    def exports(self) -> Path:
        return self.home / "exports"

    @property
    def models(self) -> Path:
        return self.home / "models"

    @property
    def cache(self) -> Path:
        return self.home / "cache"

    @property
    def copies(self) -> Path:
        """Of bases in 4 bits, each made by the first training that needs it."""
        return self.home / COPIES

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def folders(self) -> tuple[Path, ...]:
        """All that the studio makes in its home."""
        return (self.datasets, self.runs, self.adapters, self.exports, self.models, self.cache, self.copies, self.logs)

    @property
    def lock_path(self) -> Path:
        """Held by the running `studio up`; says where it answers (see studio.supervisor)."""
        return self.home / "studio.lock"

    @property
    def has_login(self) -> bool:
        return bool(self.token or self.users)

    @property
    def is_loopback(self) -> bool:
        return self.host in ("127.0.0.1", "localhost", "::1") or self.host.startswith("127.")

    def make_folders(self) -> None:
        """Create STUDIO_HOME and its folders, for its owner's eyes only. Raises StudioError where that can't be done.

        Where the home was open to others, so may have been what lies in it: then all of the studio's is closed. Folders of a person
        that lie there too keep their own rights.
        """
        try:
            self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
            was_open = self.home.stat().st_mode & privacy.OTHERS
            privacy.close_to_others(self.home)
            for folder in self.folders:
                folder.mkdir(exist_ok=True, mode=0o700)
                privacy.close_to_others(folder)
        except OSError as exc:
            raise StudioError(
                f"STUDIO_HOME {self.home} can't be used ({exc.strerror}).",
                "Set STUDIO_HOME to a folder that you may write to.",
            ) from None
        if was_open:
            self.close_files()

    def close_files(self) -> None:
        """Take from other users what they may do with the studio's files."""
        for path in self.home.iterdir():
            if path.is_file():
                privacy.close_to_others(path)
        for folder in self.folders:
            privacy.close_all_to_others(folder)


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment once. Raises ValueError naming the variable when a value can't be used."""
    env = os.environ if environ is None else environ
    home = Path(env.get("STUDIO_HOME") or Path(platformdirs.user_data_dir()) / "adapter-studio").expanduser().absolute()
    users = tuple(_user(pair) for pair in _listed(env, "STUDIO_USERS"))
    return Settings(
        home=home,
        db_url=env.get("STUDIO_DB_URL") or f"sqlite:///{home / 'studio.db'}",
        host=env.get("STUDIO_HOST") or "127.0.0.1",
        port=_number(env, "STUDIO_PORT", 7860),
        token=env.get("STUDIO_TOKEN", ""),
        local_token=env.get("STUDIO_LOCAL_TOKEN", ""),
        users=users,
        engine_url=env.get("STUDIO_ENGINE_URL", "").rstrip("/"),
        engine_key=env.get("STUDIO_ENGINE_KEY", ""),
        test_data=Path(env.get("STUDIO_TEST_DATA") or PACKAGE_ROOT.parent / "shared"),
        max_upload_bytes=_number(env, "STUDIO_MAX_UPLOAD_BYTES", 2 * 1024**3),
        sqlite_journal=env.get("STUDIO_SQLITE_JOURNAL") or "WAL",
        allowed_hosts=tuple(name.lower() for name in _listed(env, "STUDIO_ALLOWED_HOSTS")),
        allowed_origins=tuple(_origin(text) for text in _listed(env, "STUDIO_ALLOWED_ORIGINS")),
        trusted_proxies=_proxies(env),
        space_host=env.get("SPACE_HOST", "").lower(),
        hub_offline=env.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
        adapter_memory_bytes=_number(env, "STUDIO_ADAPTER_MEMORY_MIB", 0) * 1024**2,
        kv_cache_bytes=_number(env, "STUDIO_KV_CACHE_MIB", 0) * 1024**2,
        api_keys=tuple(_api_key(pair) for pair in _listed(env, "STUDIO_API_KEYS")),
    )


def _number(env: Mapping[str, str], name: str, default: int) -> int:
    value = env.get(name) or str(default)
    if not value.isdigit():
        raise ValueError(f"{name}={value!r} is not a whole number. Set it to a number such as {default}, or unset it.")
    return int(value)


def _listed(env: Mapping[str, str], name: str) -> list[str]:
    return [text.strip() for text in env.get(name, "").split(",") if text.strip()]


def _origin(text: str) -> str:
    """As browsers write it: in small letters, without a path. `*` and `null` name no one page, so they are refused."""
    scheme, separator, rest = text.lower().rstrip("/").partition("://")
    if not (scheme and separator and rest) or "/" in rest or "*" in rest or "@" in rest:
        raise ValueError("STUDIO_ALLOWED_ORIGINS must look like https://chat.example,http://localhost:3000: each page's own address.")
    default = {"http": ":80", "https": ":443"}.get(scheme, ":")
    return f"{scheme}://{rest.removesuffix(default)}"


def _proxies(env: Mapping[str, str]) -> tuple[str, ...]:
    """Nobody, unless they are named; on a Space its own network, through which everybody comes."""
    named = _listed(env, "STUDIO_TRUSTED_PROXIES")
    for text in named:
        try:
            ipaddress.ip_network(text)
        except ValueError:
            raise ValueError("STUDIO_TRUSTED_PROXIES must look like 127.0.0.1,10.0.0.0/8: addresses or networks.") from None
    if not named and env.get("SPACE_HOST"):
        return ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
    return tuple(named)


def _user(pair: str) -> tuple[str, str]:
    name, separator, password = pair.strip().partition(":")
    if not (name and separator and password):
        raise ValueError("STUDIO_USERS must look like name:password,name:password.")
    return name, password


def _api_key(pair: str) -> tuple[str, str]:
    url, separator, key = pair.strip().rpartition("=")
    if not (separator and key and url.startswith(("http://", "https://"))):
        raise ValueError("STUDIO_API_KEYS must look like https://host/v1=KEY,https://other/v1=KEY.")
    return url.rstrip("/"), key
