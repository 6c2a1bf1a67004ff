"""A wheel, installed in an empty environment and used from another directory, is the whole product."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from jobs.rundir import RunDir
from tests.runs import make_run
from tests.servers import clean_environment, studio

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "studio", "jobs", "static")
# what a studio needs at run time; the rest of `static` is for people who read the repository
NOT_PACKED = ("static/screenshot.png", "static/starter/recipe/")


@dataclass(frozen=True)
class Installed:
    """An environment that holds the wheel, and a folder that holds nothing."""

    environment: Path
    elsewhere: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def run(self, *command: str | Path, home: Path, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(part) for part in command],
            cwd=self.elsewhere,
            env=without_python_path(home),
            capture_output=True,
            text=True,
            timeout=timeout,
        )


def without_python_path(home: Path) -> dict[str, str]:
    return {name: value for name, value in clean_environment(home).items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders behind, and packs what an earlier one has left."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), "."]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment of its own, beside the libraries of this one but without this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    found = Installed(folder / "environment", folder / "elsewhere")
    found.elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(found.environment)], check=True)
    install = [sys.executable, "-m", "pip", "--python", str(found.python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    # .pth files are read in the environment's own folder only, so that this checkout's editable install stays out
    libraries = [path for path in sys.path if Path(path).name == "site-packages"] or [sysconfig.get_paths()["purelib"]]
    (packages,) = (found.environment / "lib").glob("python*/site-packages")
    (packages / "libraries.pth").write_text("\n".join(libraries), encoding="utf-8")
    return found


def test_the_wheel_holds_every_file_of_the_product_and_no_other(wheel: Path) -> None:
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(["git", "ls-files", "studio", "jobs", "static"], cwd=ROOT, capture_output=True, text=True, check=True)
    needed = {name for name in listed.stdout.splitlines() if not name.startswith(NOT_PACKED) and (ROOT / name).exists()}
    # the model cards and the sources of the question sets are licences too: they go with the files
    assert packed == {f"studio/{name}" if name.startswith("static/") else name for name in needed}


def test_an_installed_wheel_is_used_and_not_the_checkout(installed: Installed, tmp_path: Path) -> None:
    code = "import json, jobs, studio; from studio.settings import STATIC; print(json.dumps([jobs.__file__, studio.__file__, str(STATIC)]))"
    done = installed.run(installed.python, "-c", code, home=tmp_path)
    assert done.returncode == 0, done.stderr
    for place in json.loads(done.stdout):
        assert Path(place).is_relative_to(installed.environment)


def test_an_installed_studio_answers_and_runs_the_demo(installed: Installed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    monkeypatch.chdir(installed.elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with studio(home, python=installed.python) as server:
        assert httpx.get(server.url, trust_env=False, timeout=120).status_code == 200
        assert httpx.get(f"{server.url}/health", trust_env=False, timeout=120).status_code == 200
        done = installed.run(installed.environment / "bin" / "studio", "demo", "--json", home=home)
        assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["before"] == {**result["before"], "exact_match": 0.0, "n": 64}
    assert result["after"]["exact_match"] >= 0.9 and result["after"]["n"] == 64


@pytest.mark.long
def test_an_installed_trainer_runs_a_directory(installed: Installed, tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", rows=8, num_train_epochs=1, method="lora", report_rows=0)
    done = installed.run(installed.python, "-P", "-m", "jobs.train", made.path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert (RunDir(made.path).adapter / "adapter_model.safetensors").exists()
