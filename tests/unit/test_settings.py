"""The environment is read once and checked; a value that can't be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio import settings
from studio.errors import StudioError


def test_without_an_environment_the_studio_is_for_this_machine_alone(tmp_path: Path) -> None:
    loaded = settings.load({"STUDIO_HOME": str(tmp_path)})
    assert (loaded.host, loaded.port, loaded.has_login, loaded.is_loopback) == ("127.0.0.1", 7860, False, True)
    assert loaded.db_url == f"sqlite:///{tmp_path / 'studio.db'}"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STUDIO_PORT", "http"),
        ("STUDIO_PORT", "-1"),
        ("STUDIO_MAX_UPLOAD_BYTES", "2 GB"),
        ("STUDIO_USERS", "anna"),
        ("STUDIO_ALLOWED_ORIGINS", "*"),
        ("STUDIO_ALLOWED_ORIGINS", "null"),
        ("STUDIO_ALLOWED_ORIGINS", "https://a.example/path"),
        ("STUDIO_TRUSTED_PROXIES", "*"),
        ("STUDIO_TRUSTED_PROXIES", "proxy.example"),
    ],
)
def test_a_value_that_can_not_be_used_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=name):
        settings.load({name: value})


def test_users_tokens_and_hosts_are_read() -> None:
    loaded = settings.load({"STUDIO_USERS": "anna:a:b, ben:x", "STUDIO_ALLOWED_HOSTS": "Studio.Example, ", "SPACE_HOST": "me.hf.space"})
    assert loaded.users == (("anna", "a:b"), ("ben", "x")) and loaded.has_login
    assert (loaded.allowed_hosts, loaded.space_host) == (("studio.example",), "me.hf.space")


def test_origins_are_written_as_browsers_write_them_and_nobody_is_a_proxy_unless_named() -> None:
    loaded = settings.load({"STUDIO_ALLOWED_ORIGINS": "HTTPS://Chat.Example:443/, http://localhost:3000,app://obsidian.md"})
    assert loaded.allowed_origins == ("https://chat.example", "http://localhost:3000", "app://obsidian.md")
    assert loaded.trusted_proxies == () and "10.0.0.0/8" in settings.load({"SPACE_HOST": "me.hf.space"}).trusted_proxies
    assert settings.load({"STUDIO_TRUSTED_PROXIES": "::1, 10.0.0.0/8"}).trusted_proxies == ("::1", "10.0.0.0/8")


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False)]
)
def test_only_this_machine_is_loopback(host: str, expected: bool) -> None:
    assert settings.load({"STUDIO_HOST": host}).is_loopback is expected


def test_folders_are_for_their_owner_only(tmp_path: Path) -> None:
    loaded = settings.load({"STUDIO_HOME": str(tmp_path / "home")})
    loaded.make_folders()
    assert loaded.home.stat().st_mode & 0o077 == 0 and loaded.runs.is_dir()


def test_a_home_that_can_not_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StudioError, match="STUDIO_HOME"):
        settings.load({"STUDIO_HOME": str(tmp_path / "file" / "home")}).make_folders()


@pytest.mark.parametrize(("content", "is_private"), [("", True), ("studio", True), ("photos", False)])
def test_other_users_cannot_look_into_a_home_that_was_there_before(tmp_path: Path, content: str, is_private: bool) -> None:
    """A home that holds other things keeps its own rights; the studio's folders in it are private all the same."""
    found = settings.load({"STUDIO_HOME": str(tmp_path / "home")})
    folders = (found.datasets, found.runs, found.adapters, found.exports, found.models, found.cache, found.logs)
    found.home.mkdir()
    for folder in {"studio": folders, "photos": (found.home / "photos", found.runs)}.get(content, ()):
        folder.mkdir()
        folder.chmod(0o755)
    found.home.chmod(0o755)
    found.make_folders()
    assert (found.home.stat().st_mode & 0o077 == 0) is is_private
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)
    if content == "photos":
        assert (found.home / "photos").stat().st_mode & 0o777 == 0o755
