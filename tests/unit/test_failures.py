"""The failure doctor, case by case: one sentence, a fix, and options for the next try."""

from __future__ import annotations

import errno

import pytest

from jobs import config
from jobs.config import JobConfig
from jobs.trainers import failures
from jobs.trainers.failures import DivergedError, Divergence, explain, less_memory, smaller_batch
from studio.errors import DatasetError, ModelError


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


CUDA = OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.6 GiB")
CPU = RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
WINDOWS = RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1073741824 bytes.")
HALF = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "per_device_eval_batch_size": 4}


@pytest.mark.parametrize(
    ("exc", "cause", "words", "remedy"),
    [
        (MemoryError(), "out_of_memory", "memory of this machine", HALF),
        (CUDA, "out_of_memory", "memory on the GPU", HALF),
        (CPU, "out_of_memory", "memory of this machine", HALF),
        (WINDOWS, "out_of_memory", "memory of this machine", HALF),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out_of_memory", "memory of this machine", HALF),
        (DivergedError("loss", 7), "diverged", "not a number any more at step 7", {"learning_rate": 6.7e-5, "warmup_steps": 10}),
        (OSError(errno.ENOSPC, "No space left on device", "/x/optimizer.pt"), "disk_full", "/x/optimizer.pt", {}),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk_full", "disk is full", {}),
        (DatasetError("train.jsonl, line 7: not a row.", "Mend it."), "bad_row", "line 7", {}),
        (ModelError("It is not there.", "Add it."), "model", "not there", {}),
        (OSError("You are trying to access a gated repo."), "model", "not on this machine", {}),
        (OSError("meta/x is not a local folder and is not a valid model identifier"), "model", "not on this machine", {}),
        (RuntimeError("Error while deserializing header: HeaderTooLarge"), "model", "damaged", {}),
        (ValueError("Target modules {'q_projx'} not found in the base model."), "options", "does not fit", {}),
        (ImportError("tensorboard is not installed"), "package", "tensorboard", {}),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "disk_full", "disk is full", {}),
        (OSError("The paging file is too small for this operation to complete. (os error 1455)"), "out_of_memory", "memory", HALF),
        (
            ValueError("The checkpoint you are trying to load has model type `x` but Transformers does not recognize this architecture."),
            "model",
            "does not know this base model",
            {},
        ),
        (
            ValueError("You cannot perform fine-tuning on purely quantized models. Please attach trainable adapters"),
            "model",
            "quantised",
            {},
        ),
        (Exception("data did not match any variant of untagged enum ModelUntagged at line 1 column 23"), "model", "damaged", {}),
        (IndexError("index out of range in self"), "model", "outside the base model's tables", {}),
        (RuntimeError("CUDA error: device-side assert triggered"), "model", "outside the base model's tables", {}),
        (
            ValueError(
                "BloomForCausalLM does not support an attention implementation through torch.nn.functional."
                "scaled_dot_product_attention yet."
            ),
            "options",
            "chosen attention",
            {},
        ),
        (RuntimeError("FlashAttention only supports Ampere GPUs or newer."), "options", "chosen attention", {}),
        (ValueError("Mamba2ForCausalLM does not support gradient checkpointing."), "options", "recompute", {}),
        (ValueError("Attempting to unscale FP16 gradients."), "options", "don't suit the device", {"device": "cpu"}),
        (
            ValueError("[PEFT:LORA] Module 'out_proj' is incompatible with Mamba-based models (model_type='mamba')."),
            "options",
            "not fit",
            {},
        ),
        (ValueError("Please specify `target_modules` in `peft_config`"), "options", "not fit", {}),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "driver", "GPU reported", {}),
        (RuntimeError("something\nnew"), "", "something new", {}),
    ],
)
def test_a_failure_is_one_sentence_a_fix_and_options_that_help(exc: Exception, cause: str, words: str, remedy: dict[str, object]) -> None:
    failure = explain(exc, JobConfig())
    assert (failure.cause, failure.remedy) == (cause, remedy)
    assert words in failure.reason and failure.fix and "\n" not in failure.reason + failure.fix
    config.build(JobConfig().model_dump(), failure.remedy)  # they are options
    assert explain(exc).reason == failure.reason  # without a config too


@pytest.mark.parametrize(("size", "half", "times"), [(2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 1, 5), (6, 3, 2), (9, 3, 3), (4096, 2048, 2)])
def test_a_smaller_batch_sees_the_same_rows_in_a_step(size: int, half: int, times: int) -> None:
    smaller = smaller_batch(JobConfig(per_device_train_batch_size=size, gradient_accumulation_steps=3))
    assert (smaller["per_device_train_batch_size"], smaller["gradient_accumulation_steps"]) == (half, 3 * times)
    assert half * times == size


def test_remedies_for_memory_come_to_an_end() -> None:
    options: dict[str, object] = {"per_device_train_batch_size": 8, "max_length": 512}
    seen = []
    while remedy := less_memory(config.build(options)):
        options |= remedy
        seen.append(next(iter(remedy)))
        assert len(seen) < 20
    batch = ["per_device_train_batch_size"] * 3
    assert seen == [*batch, "gradient_checkpointing", "quantization.load_in_4bit", "max_length", "max_length"]


def test_a_remedy_names_what_the_job_has_otherwise() -> None:
    chosen = config.build({"attn_implementation": "flash_attention_2", "gradient_checkpointing": True, "lora.target_modules": ["wq"]})
    for said, remedy in (
        ("FlashAttention only supports Ampere GPUs or newer.", {"attn_implementation": "auto"}),
        ("X does not support gradient checkpointing.", {"gradient_checkpointing": False}),
        ("Target modules {'wq'} not found in the base model.", {"lora.target_modules": "all-linear"}),
    ):
        assert explain(ValueError(said), chosen).remedy == remedy


def test_options_that_need_a_missing_package_are_taken_back() -> None:
    assert explain(ImportError("no wandb"), JobConfig(report_to="wandb")).remedy == {"report_to": "none"}
    four_bit = config.build({"quantization.load_in_4bit": True})
    assert explain(ImportError("bitsandbytes is missing"), four_bit).remedy == {"quantization.load_in_4bit": False}


def test_a_loss_that_stays_far_above_its_start_is_told_once() -> None:
    watch = Divergence()
    losses = [2.0] * 5 + [3.9] * 50 + [5.0] * 10 + [1.0] + [5.0] * 40
    notices = [(step, text) for step, loss in enumerate(losses, 1) if (text := watch.notice(step, loss))]
    assert [step for step, _ in notices] == [5 + 50 + 10 + 1 + Divergence.LONG]
    assert "learning_rate" in notices[0][1]


def test_the_words_of_a_library_are_cut_short() -> None:
    assert len(explain(RuntimeError("x" * 10_000)).reason) < 400
    assert failures.LOOK_AT_LOG in explain(RuntimeError("x")).fix
