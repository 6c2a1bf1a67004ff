"""The environment is read once and checked; a value that can't be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from studio import privacy, settings
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


def test_a_home_that_was_there_before_is_closed_with_all_files_of_the_studio(tmp_path: Path) -> None:
    """As Docker makes it: 755, and rows 644. A folder of the person's own that lies there too keeps its rights, behind the closed home."""
    found = settings.load({"STUDIO_HOME": str(tmp_path / "home")})
    (found.datasets / "d").mkdir(parents=True)
    rows, database, photo, linked = (
        found.datasets / "d" / "rows.jsonl",
        found.home / "studio.db",
        found.home / "photos" / "a",
        tmp_path / "x",
    )
    photo.parent.mkdir()
    for file in (rows, database, photo, linked):
        file.touch()
        file.chmod(0o664)
    (found.datasets / "link").symlink_to(linked)
    for folder in (found.home, found.datasets, found.datasets / "d", photo.parent):
        folder.chmod(0o755)
    found.make_folders()
    closed = (found.home, found.datasets, found.datasets / "d", found.runs, rows, database)
    assert [oct(path.stat().st_mode & 0o077) for path in closed] == ["0o0"] * len(closed)
    assert photo.stat().st_mode & 0o777 == linked.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize(("folder_mode", "expected"), [(0o755, (0o755, 0o644)), (0o750, (0o750, 0o640)), (0o700, (0o700, 0o600))])
def test_what_is_handed_out_is_as_open_as_the_folder_that_was_chosen(tmp_path: Path, folder_mode: int, expected: tuple[int, int]) -> None:
    chosen = tmp_path / "chosen"
    (chosen / "export").mkdir(parents=True, mode=0o700)
    file = chosen / "export" / "weights"
    file.touch(mode=0o600)
    chosen.chmod(folder_mode)
    (chosen / "export").chmod(0o700)
    privacy.hand_out(chosen / "export")
    assert ((chosen / "export").stat().st_mode & 0o777, file.stat().st_mode & 0o777) == expected


@pytest.mark.parametrize(("mode", "expected"), [(0o755, 0o022), (0o770, 0o007), (0o700, 0o077)])
def test_a_shared_cache_stays_shared(tmp_path: Path, mode: int, expected: int) -> None:
    tmp_path.chmod(mode)
    assert privacy.umask_of(tmp_path) == expected
    assert privacy.umask_of(tmp_path / "not" / "yet") == expected
