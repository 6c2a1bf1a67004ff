"""What torch, Triton and bitsandbytes say when a GPU, its driver or its compiler fails: a sentence and a fix for each. Goes by their words.

Knows no torch and no job: trainer, worker and engine all ask here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

INDEX = "https://download.pytorch.org/whl/"
OLDER = f"make clean install TORCH_INDEX={INDEX}cu126"  # CUDA 12: any driver from 525 on, and GPUs that CUDA 13 has dropped
NEWEST = f"make clean install TORCH_INDEX={INDEX}cu130"
LEAST_CUDA_12 = 12000  # as torch counts what a driver serves: 12040 is CUDA 12.4
FOUND_VERSION = re.compile(r"found version (\d+)")
LOOK_FOR_XID = "Look for lines with Xid in the kernel's log (`dmesg | grep -i xid`)"


@dataclass(frozen=True)
class GpuFailure:
    """The sentence has no full stop: the library's words may follow it."""

    sentence: str
    fix: str


@dataclass(frozen=True)
class _GpuWords:
    """A failure, and the words that it is known by."""

    pattern: re.Pattern[str]
    failure: GpuFailure


def _words(pattern: str, sentence: str, fix: str) -> _GpuWords:
    return _GpuWords(re.compile(pattern, re.I), GpuFailure(sentence, fix))


_TOO_OLD = re.compile(r"driver .{0,60}(too old|insufficient)", re.I)
# the most telling first
_KNOWN = (
    _words(
        r"Failed to find C(\+\+)? compiler",
        "Triton, which compiles code for the GPU while a job runs, finds no C compiler",
        "Install one (on Debian or Ubuntu `apt-get install gcc`), or name yours in the environment variable CC.",
    ),
    _words(
        r"CalledProcessError.{0,200}(gcc|clang|cc1|g\+\+)\b|Python\.h: No such file",
        "Triton's C compiler can't compile its part for this Python",
        "Install Python's header files and the C library's (on Debian or Ubuntu `apt-get install python3-dev libc6-dev`).",
    ),
    _words(
        r"out of resource: ",
        "A kernel that Triton compiled needs more of the GPU's on-chip memory than this GPU has",
        "Lower max_length, set use_liger_kernel=false where it is on, or use a newer GPU.",
    ),
    _words(
        r"PTXAS error|not defined for option 'gpu-name'|Cannot find ptxas",
        "Triton can't compile for this GPU",
        f"Install a PyTorch whose Triton knows it (`{NEWEST}`).",
    ),
    _words(
        r"libcuda\.so cannot found|libcuda\.so(\.1)?: cannot open",
        "The driver's library libcuda.so is not found",
        "Run `sudo /sbin/ldconfig` once; in a container start it with the GPU (`docker run --gpus all`), under WSL add /usr/lib/wsl/lib to "
        "LD_LIBRARY_PATH.",
    ),
    _words(
        r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device is detected",
        "PyTorch finds no GPU",
        "Install NVIDIA's driver, or start the container with the GPU; an empty CUDA_VISIBLE_DEVICES hides it.",
    ),
    _words(
        r"Torch not compiled with CUDA enabled|not compiled with CUDA support",
        "This PyTorch was built without CUDA",
        f"Install one with it (`{NEWEST}`; for drivers before 580 `{OLDER}`).",
    ),
    _words(
        r"not available in CPU-only version of bitsandbytes|bitsandbytes native library functionality|No compatible \w+ binary found"
        r"|(CUDA|ROCm) SETUP ERROR",
        "bitsandbytes, which keeps weights in 4 and 8 bits, has no library for this GPU and this CUDA",
        "`python -m bitsandbytes` says what it looks for; quantization.load_in_4bit=false and load_in_8bit=false do without it.",
    ),
    _words(
        r"Error named symbol not found|no kernel image is available|device kernel image is invalid|PTX was compiled|named symbol not found",
        "PyTorch or bitsandbytes holds no code for this kind of GPU",
        f"Install a PyTorch that was built for it: `{OLDER}` for GPUs before Turing, `{NEWEST}` for the newest.",
    ),
    _words(
        r"Driver/library version mismatch",
        "The driver was updated while the system ran, and its parts no longer fit together",
        "Restart the machine.",
    ),
    _words(
        r"uncorrectable ECC error|uncorrectable NVLink error|hardware stack error|\bXid\b|row remap",
        "The GPU reported a fault of its hardware",
        f"{LOOK_FOR_XID}, then reset it (`sudo nvidia-smi --gpu-reset`) or restart the machine; should it come back, the card is failing.",
    ),
    _words(
        r"GPU is lost|fallen off the bus|Unable to determine the device handle",
        "The system has lost the GPU",
        f"{LOOK_FOR_XID}, check its power and cooling, and restart the machine.",
    ),
    _words(
        r"busy or unavailable|exclusive process",
        "Another program holds the GPU for itself",
        "`nvidia-smi` lists who uses it; end that program, or let several share it (`sudo nvidia-smi -c DEFAULT`).",
    ),
)


def explain(text: str) -> GpuFailure | None:
    """What a library's words about a GPU mean; None where they are not known."""
    text = " ".join(text.split())
    if _TOO_OLD.search(text):
        return _too_old(text)
    return next((known.failure for known in _KNOWN if known.pattern.search(text)), None)


def _too_old(text: str) -> GpuFailure:
    """A driver serves its own CUDA and older ones, and within one major version newer ones too."""
    found = FOUND_VERSION.search(text)
    sentence = "The GPU's driver is older than this PyTorch needs"
    if not found:
        return GpuFailure(sentence, f"Update the driver to 580 or newer, or install a PyTorch for drivers from 525 on (`{OLDER}`).")
    version = int(found[1])
    sentence += f": it serves CUDA {version // 1000}.{version % 1000 // 10}"
    if version < LEAST_CUDA_12:
        return GpuFailure(sentence, f"Update the driver to 580 or newer; from 525 on a PyTorch for CUDA 12 works (`{OLDER}`).")
    return GpuFailure(sentence, f"Update the driver to 580 or newer, or install a PyTorch for this one (`{OLDER}`).")
