"""What libraries say of a GPU, in their own words, is one sentence and a fix: in a training, in a trainer's log, in the engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jobs import outcome
from jobs.config import JobConfig
from jobs.executor import Exit
from jobs.rundir import RunDir
from jobs.trainers.failures import DRIVER, OUT_OF_MEMORY, explain
from studio.catalogue import gpu_failures
from studio.engine.failures import as_engine_error

OLD = (  # torch 2.13, c10/cuda
    "The NVIDIA driver on your system is too old (found version {}). Please update your GPU driver by downloading and installing a new "
    "version from the URL: http://www.nvidia.com/Download/index.aspx Alternatively, go to: https://pytorch.org to install a PyTorch version "
    "that has been compiled with your version of the CUDA driver."
)
RESOURCES = "out of resource: shared memory, Required: 147456, Hardware limit: 101376. Reducing block sizes or `num_stages` may help."
COMMAND = ["/usr/bin/gcc", "/tmp/tmpx/cuda_utils.c", "-O3", "-shared", "-fPIC", "-lcuda"]
LDCONFIG = 'Please make sure GPU is set up and then run "/sbin/ldconfig" (requires sudo) to refresh the linker cache.'


class OutOfResources(Exception):
    """As Triton calls its own."""


# triton 3.9, torch 2.13, bitsandbytes 0.50.2 and NVIDIA's driver, word for word
SAID: list[tuple[Exception, str, str]] = [
    (
        RuntimeError("Failed to find C compiler. Please specify via CC environment variable or set triton.knobs.build.impl."),
        "no C compiler",
        "apt-get install gcc",
    ),
    (subprocess.CalledProcessError(1, COMMAND), "can't compile its part", "python3-dev"),
    (OutOfResources(RESOURCES), "on-chip memory", "use_liger_kernel=false"),
    (
        RuntimeError("PTXAS error: Internal Triton PTX codegen error\nptxas fatal: Value 'sm_121a' is not defined for option 'gpu-name'"),
        "can't compile for this GPU",
        "whl/cu130",
    ),
    (AssertionError(f"libcuda.so cannot found!\n{LDCONFIG}"), "libcuda.so is not found", "ldconfig"),
    (ImportError("libcuda.so.1: cannot open shared object file: No such file or directory"), "libcuda.so is not found", "--gpus all"),
    (RuntimeError(OLD.format(11040)), "serves CUDA 11.4", "from 525 on"),
    (RuntimeError(OLD.format(12000)), "serves CUDA 12.0", "install a PyTorch for this one"),
    (RuntimeError(OLD.format(12080)), "serves CUDA 12.8", "TORCH_INDEX=https://download.pytorch.org/whl/cu126"),
    (RuntimeError("CUDA driver version is insufficient for CUDA runtime version"), "older than this PyTorch needs", "whl/cu126"),
    (
        RuntimeError(
            "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
            "http://www.nvidia.com/Download/index.aspx"
        ),
        "finds no GPU",
        "CUDA_VISIBLE_DEVICES",
    ),
    (RuntimeError("No CUDA GPUs are available"), "finds no GPU", "driver"),
    (AssertionError("Torch not compiled with CUDA enabled"), "built without CUDA", "whl/cu130"),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "no code for this kind of GPU", "whl/cu126"),
    (RuntimeError("CUDA error: device kernel image is invalid"), "no code for this kind of GPU", "whl/cu130"),
    (
        RuntimeError(
            "Method 'cquantize_blockwise_fp16_nf4' not available in CPU-only version of bitsandbytes.\n"
            "Reinstall with GPU support or use CUDA-enabled hardware."
        ),
        "bitsandbytes",
        "python -m bitsandbytes",
    ),
    (RuntimeError("No compatible CUDA binary found at /x/libbitsandbytes_cuda129.so"), "bitsandbytes", "load_in_4bit=false"),
    (RuntimeError("Failed to initialize NVML: Driver/library version mismatch"), "no longer fit together", "Restart"),
    (RuntimeError("CUDA error: uncorrectable ECC error encountered"), "fault of its hardware", "dmesg"),
    (RuntimeError("NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus."), "fault of its hardware", "nvidia-smi --gpu-reset"),
    (
        RuntimeError("Unable to determine the device handle for GPU0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU"),
        "lost the GPU",
        "power and cooling",
    ),
    (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "Another program holds", "nvidia-smi"),
]


@pytest.mark.parametrize(("exc", "sentence", "fix"), SAID, ids=lambda value: str(value)[:40])
def test_words_about_a_gpu_are_a_sentence_and_a_fix_in_training_and_engine(exc: Exception, sentence: str, fix: str) -> None:
    failure = explain(exc, JobConfig())
    assert sentence in failure.reason and fix in failure.fix, failure
    assert (failure.cause, failure.remedy) == (DRIVER, {"device": "cpu"})
    assert "\n" not in failure.reason + failure.fix
    answered = as_engine_error(exc, "m can't answer")
    assert answered.code == "gpu_error" and answered.message.startswith("m can't answer: ")
    assert sentence in answered.message and answered.fix == failure.fix


def test_every_index_is_named_in_full() -> None:
    # red when a remedy tells to set TORCH_INDEX to dots, or `make` would find that nothing is to be done
    for said in (gpu_failures.OLDER, gpu_failures.NEWEST):
        assert said.startswith("make clean install TORCH_INDEX=https://download.pytorch.org/whl/cu") and "…" not in said


@pytest.mark.parametrize(("code", "log", "cause", "words"), [
    (1, "step 3\nError named symbol not found at line 62 in file /src/csrc/ops.cu\n", DRIVER, "no code for this kind of GPU"),
    (1, "Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp\n", OUT_OF_MEMORY, "memory"),
    (-6, "terminate called after throwing an instance of 'c10::AcceleratorError'\n  what():  CUDA error: uncorrectable ECC error encountered\n"
     "Compile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n", DRIVER, "fault of its hardware"),
    (1, "Xids are listed\nsomething else\n", "", "exit code 1: something else"),
])  # fmt: skip
def test_a_trainer_that_ends_without_a_result_is_told_by_its_log(tmp_path: Path, code: int, log: str, cause: str, words: str) -> None:
    # red when bitsandbytes, which ends the process, is passed on as an exit code alone
    attempt = RunDir(tmp_path).attempt(1)
    attempt.path.mkdir(parents=True)
    attempt.log.write_text(log)
    found = outcome.judge(Exit(code), attempt, we_asked=False, config=JobConfig())
    assert (found.kind, found.cause) == ("failed", cause) and words in found.reason, found
