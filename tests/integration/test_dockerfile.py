"""The Dockerfile's own install steps, in a clean folder: what an image would hold is enough to start the studio."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

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


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_the_images_install_steps_give_a_studio_that_starts(tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "MAKE", "MFLAGS", "PYTHON"))}
    index = torch_index(tmp_path / "index", [])  # without torch: it comes from pip's own configuration
    environment |= {"DEVICE": "cpu", "TORCH_INDEX": index, "STUDIO_HOME": str(tmp_path / "home")}
    environment |= {"PIP_NO_COMPILE": "1"}  # half of the time that installing takes
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


def torch_index(folder: Path, builds: list[str]) -> str:
    """The address of a folder that stands in for PyTorch's index: wheels of torch that hold no more than their metadata."""
    version = next(line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith("torch==")).partition("==")[2]
    (folder / "torch").mkdir(parents=True)
    for build in builds:
        name = f"torch-{version}+{build}"
        with zipfile.ZipFile(folder / "torch" / f"{name}-py3-none-any.whl", "w") as wheel:
            metadata = f"Metadata-Version: 2.1\nName: torch\nVersion: {version}+{build}\nRequires-Dist: networkx>=2.5.1\n"
            wheel.writestr(f"{name}.dist-info/METADATA", metadata)
            wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{name}.dist-info/RECORD", "")
    links = "".join(f'<a href="{file.name}">{file.name}</a>' for file in (folder / "torch").glob("*.whl"))
    (folder / "torch" / "index.html").write_text(links, encoding="utf-8")
    return folder.as_uri()


@pytest.mark.parametrize(("device", "build"), [("cpu", "cpu"), ("cuda", "cu130")])
def test_both_images_take_torch_from_its_index_and_all_else_from_pypi(tmp_path: Path, device: str, build: str) -> None:
    """Red where an index of torch alone replaces PyPI, and where a branch of the Dockerfile names none."""
    [steps] = [rest for keyword, rest in instructions() if keyword == "RUN" and "make install" in rest]
    said = subprocess.run(
        ["sh", "-ec", steps.replace("make install", "make -n -B install")],
        cwd=ROOT,
        env={**os.environ, "DEVICE": device, "TORCH_INDEX": ""},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    address = f"https://download.pytorch.org/whl/{build}"
    installs = [line.partition(" -m pip ")[2] for line in said.splitlines() if " -m pip install" in line]
    assert [f"--extra-index-url {address} " in line and "--index-url" not in line.replace("--extra-", "") for line in installs] == [
        True,
        True,
    ]
    command = installs[0].replace(address, torch_index(tmp_path, [build]))
    done = subprocess.run(
        [sys.executable, "-m", "pip", *shlex.split(command), "--dry-run", "--ignore-installed"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert f"+{build}" in done.stdout.rpartition("Would install")[2] and "networkx-" in done.stdout


def test_the_image_holds_a_compiler_for_triton_and_no_cache_of_pip() -> None:
    steps = instructions()
    [packages] = [rest for keyword, rest in steps if keyword == "RUN" and "apt-get" in rest]
    assert {"gcc", "libc6-dev", "tini", "make"} <= set(packages.split())
    names = [keyword for keyword, rest in steps if rest.startswith("PIP_NO_CACHE_DIR=1") or "make install" in rest]
    assert names == ["ENV", "RUN"]  # before the first installation


def test_the_compose_file_has_a_profile_for_each_image() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
    assert {name: service["profiles"] for name, service in compose["services"].items()} == {"cpu": ["cpu"], "cuda": ["cuda"]}
    for name, service in compose["services"].items():
        assert service["build"] == {"context": ".", "args": {"DEVICE": name}}
        assert service["ports"] == ["127.0.0.1:7860:7860"] and service["volumes"] == ["studio:/home/user/data"]
    assert compose["volumes"].keys() == {"studio"} and "deploy" not in compose["services"]["cpu"]
    [card] = compose["services"]["cuda"]["deploy"]["resources"]["reservations"]["devices"]
    assert card == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}
    if program := shutil.which("docker-compose"):  # reads it as Docker would, where it is there
        for profile in ("cpu", "cuda"):
            subprocess.run([program, "-f", ROOT / "compose.yaml", "--profile", profile, "config"], check=True, capture_output=True)


def test_the_image_runs_as_uid_1000_behind_an_init_on_port_7860() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert "useradd -m -u 1000 user" in text
    assert 'ENTRYPOINT ["tini", "--"]' in text
    assert "EXPOSE 7860" in text
