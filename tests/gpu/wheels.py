"""`make gpu-wheels`: the wheels that `python3 -m tests.gpu` needs on a machine that has CUDA and torch and no network.

Small enough to be carried: what such a machine has anyway is left out (EXPECTED), and bitsandbytes keeps one of its libraries, the one
for that machine's CUDA.
"""

from __future__ import annotations

import argparse
import csv
import io
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 30_000_000
WHEELS = (
    "transformers", "peft", "trl", "datasets", "bitsandbytes", "llguidance", "gguf", "pydantic", "pydantic_core", "annotated-types",
    "typing-inspection", "typing_extensions", "fastapi", "starlette", "uvicorn", "annotated-doc", "msgspec", "orjson", "multiprocess",
    "dill", "xxhash", "platformdirs", "huey", "opentelemetry-api",
)  # fmt: skip
PURE = ("SQLAlchemy",)  # its compiled wheel is larger than what it gains here
EXPECTED = (
    "torch", "triton", "numpy", "jinja2", "markupsafe", "networkx", "sympy", "mpmath", "filelock", "fsspec", "setuptools", "packaging",
    "accelerate", "huggingface_hub", "hf-xet", "tokenizers", "safetensors", "pyarrow", "pandas", "python-dateutil", "six", "pyyaml", "regex",
    "psutil", "nvidia-ml-py", "tqdm", "requests", "urllib3", "certifi", "charset-normalizer", "idna", "httpx", "httpcore", "h11", "anyio",
    "click", "typer",
)  # fmt: skip
GLIBCS = (5, 12, 17, 24, 27, 28, 31, 34, 35)  # 2.N: pip matches each platform word for word
LIBRARY = re.compile(r"libbitsandbytes_\w+\.so$")


def versions(constraints: str) -> dict[str, str]:
    """Normalised name -> version, of constraints.txt."""
    pairs = (line.split("==") for line in constraints.splitlines() if "==" in line)
    return {normalised(name): version.strip() for name, version in pairs}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def download(names: Sequence[str], to: Path, python: str, *, pure: bool = False) -> None:
    """Raises CalledProcessError, with pip's own words on stderr."""
    known = versions((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    platforms = ["any"]
    abis = ["none"]
    if not pure:
        platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBCS] + ["manylinux2014_x86_64", "manylinux2010_x86_64", "any"]
        abis = ["cp" + python.replace(".", ""), "abi3", "none"]
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp" if not pure else "py", "--dest", str(to)]
    command += [word for abi in abis for word in ("--abi", abi)] + [word for one in platforms for word in ("--platform", one)]
    subprocess.run([*command, *(f"{name}=={known[normalised(name)]}" for name in names)], check=True)


def repack(wheel: Path, library: str) -> int:
    """Leave one of bitsandbytes' libraries in its wheel; its bytes then. Raises ValueError where the wheel lacks it."""
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        libraries = [name for name in names if LIBRARY.search(name)]
        kept = [name for name in libraries if name.endswith(f"/libbitsandbytes_{library}.so")]
        if not kept:
            there = ", ".join(name.rpartition("_")[2].removesuffix(".so") for name in libraries)
            raise ValueError(f"{wheel.name} has no library {library}; it has {there}. Name one with --cuda.")
        dropped = set(libraries) - set(kept)
        part = wheel.with_suffix(".part")
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as smaller:
            for name in names:
                content = packed.read(name)
                if name.endswith(".dist-info/RECORD"):
                    content = _without(content, dropped)
                if name not in dropped:
                    smaller.writestr(name, content)
    part.replace(wheel)
    return wheel.stat().st_size


def _without(record: bytes, dropped: set[str]) -> bytes:
    """The list of a wheel's files without these."""
    out = io.StringIO()
    rows = csv.reader(io.StringIO(record.decode("utf-8")))
    csv.writer(out, lineterminator="\n").writerows(row for row in rows if row and row[0] not in dropped)
    return out.getvalue().encode("utf-8")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.wheels", description="Collect the wheels for a machine without a network.")
    parser.add_argument("--to", type=Path, default=Path("build/gpu-wheels"))
    parser.add_argument("--python", default="3.12", help="of that machine")
    parser.add_argument("--cuda", default="130", help="of its torch, without the point: 130, 128, 126")
    chosen = parser.parse_args(arguments)
    shutil.rmtree(chosen.to, ignore_errors=True)
    chosen.to.mkdir(parents=True)
    try:
        download(WHEELS, chosen.to, chosen.python)
        download(PURE, chosen.to, chosen.python, pure=True)
        repack(next(chosen.to.glob("bitsandbytes-*.whl")), f"cuda{chosen.cuda}")
    except subprocess.CalledProcessError:
        print("The wheels could not be fetched: pip says why above. It needs a network, here.", file=sys.stderr)
        return 1
    except ValueError as exc:
        print(exc, file=sys.stderr)
        return 1
    size = sum(wheel.stat().st_size for wheel in chosen.to.glob("*.whl"))
    for wheel in sorted(chosen.to.glob("*.whl"), key=lambda one: -one.stat().st_size):
        print(f"{wheel.stat().st_size / 1e6:>6.1f} MB  {wheel.name}")
    print(f"{size / 1e6:>6.1f} MB  in {chosen.to}, for Python {chosen.python} and CUDA {chosen.cuda}")
    print(f"That machine brings {', '.join(EXPECTED)}. There, in this folder:")
    print(f"python3 -m pip install -q --no-index --no-deps --target .site {chosen.to}/*.whl")
    print("PYTHONPATH=$PWD/.site:$PWD python3 -m tests.gpu --out build/gpu")
    if size > MOST_BYTES:
        print(f"That is more than the {MOST_BYTES / 1e6:.0f} MB that such a machine may take.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
