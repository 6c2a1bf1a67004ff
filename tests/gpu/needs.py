"""What `make gpu` needs of a machine, and in one line what this one lacks."""

from __future__ import annotations

import importlib.util
from pathlib import Path

NEEDED = (
    "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "pydantic",
    "sqlalchemy", "huey", "msgspec", "orjson", "platformdirs", "psutil", "filelock", "jinja2", "yaml", "regex", "httpx",
    "fastapi", "uvicorn", "llguidance", "gguf",
)  # fmt: skip
CUDA_13, CUDA_12 = "driver 580 or later for the PyTorch of PyPI", "525 or later with TORCH_INDEX=https://download.pytorch.org/whl/cu126"
LEAST_DISK_BYTES = 40 * 1024**3
REDUCED = "Its reduced form runs without one: `python -m tests.gpu --reduced`."


def packages(with_card: bool) -> str:
    """The packages that are not installed, in a sentence; empty where all are."""
    asked = [*NEEDED, *["pynvml"] * with_card]
    missing = [name for name in asked if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return (
        f"make gpu needs {', '.join(missing)}, which this Python does not have: run `make install`, or on a machine without a network take "
        "the wheels of `make gpu-wheels`."
    )


def card() -> str:
    """Why no card can be used here, in a sentence; empty where one can."""
    from studio.catalogue import hardware

    if (refusal := hardware.refusal()) is not None:
        return f"make gpu needs an NVIDIA GPU that PyTorch can use. {refusal.problem} {refusal.fix} {REDUCED}"
    if hardware.usable()[0].kind == "cuda":
        return ""
    build = f"PyTorch {hardware.torch_version()} is here"
    return f"make gpu needs an NVIDIA GPU with {CUDA_13}, {CUDA_12}; no such GPU is here ({build}). {REDUCED}"


def disk(work: Path) -> str:
    """Whether models and runs find room; empty where they do."""
    import shutil

    free = shutil.disk_usage(work).free
    if free >= LEAST_DISK_BYTES:
        return ""
    return f"make gpu writes {LEAST_DISK_BYTES / 1e9:.0f} GB of models and runs, and {work} has {free / 1e9:.0f} GB free: name another place with --out."
