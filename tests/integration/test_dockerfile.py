"""The Dockerfile's own install steps, in a clean folder: what an image would hold is enough to start the studio."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(keyword, rest) of every Dockerfile instruction."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(keyword, rest) for keyword, _, rest in (line.partition(" ") for line in lines)]


def copy(arguments: str, target_root: Path) -> None:
    *sources, target = [a for a in arguments.split() if not a.startswith("--")]
    for source in sources:
        origin = ROOT / source
        destination = target_root / (Path(target) / source if target.endswith("/") else Path(target))
        if origin.is_dir():
            shutil.copytree(origin, destination, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(origin, destination)


@pytest.mark.timeout(900)
def test_the_images_install_steps_give_a_studio_that_starts(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "MAKE", "MFLAGS", "PYTHON"))}
    environment |= {"DEVICE": "cuda", "STUDIO_HOME": str(tmp_path / "home")}  # cuda: torch from pip's own configuration
    is_user = False
    for keyword, rest in instructions():
        is_user = is_user or (keyword, rest) == ("USER", "user")
        if not is_user:
            continue  # apt-get and useradd belong to the image's root
        if keyword == "COPY":
            copy(rest, app)
        elif keyword == "RUN" and "/home/user" not in rest:
            subprocess.run(["sh", "-ec", rest], cwd=app, env=environment, check=True, capture_output=True)
    python = app / ".venv" / "bin" / "python"
    subprocess.run([python, "-W", "ignore", "-c", "import studio.web, jobs.train"], cwd=app, env=environment, check=True)
    assert not (app / ".venv" / "bin" / "pytest").exists()
    done = subprocess.run([app / ".venv/bin/studio", "doctor", "--json"], cwd=app, env=environment, capture_output=True, text=True)
    assert '"checks"' in done.stdout, done.stderr


def test_the_image_runs_as_uid_1000_behind_an_init_on_port_7860() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "useradd -m -u 1000 user" in text
    assert 'ENTRYPOINT ["tini", "--"]' in text
    assert "EXPOSE 7860" in text
