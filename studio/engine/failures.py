"""What went wrong, as errors of the protocol: one line that says what happened and what would help. Knows no torch."""

from __future__ import annotations

from studio.catalogue import gpu_failures
from studio.engine.leases import Lease
from studio.errors import EngineError, ModelError

LONGEST_STEP_S = 120.0  # a load or a step can't be interrupted


def as_engine_error(exc: Exception, what: str) -> EngineError:
    """Any failure as one clear error of the protocol."""
    if isinstance(exc, EngineError):
        return exc
    if isinstance(exc, ModelError):
        return EngineError(exc.message, exc.fix, status=400, code="model_not_loadable")
    text = " ".join(str(exc).split())[:300]
    if is_out_of_memory(exc):
        reason = text if type(exc) is MemoryError and text else "there is not enough memory"
        fix = "Choose a smaller model, shorten the prompt, or wait for the running job to end."
        return EngineError(f"{what}: {reason}.", fix, status=503, code="out_of_memory")
    if known := gpu_failures.explain(f"{type(exc).__name__}: {text}"):
        return EngineError(f"{what}: {known.sentence}: {text.rstrip('.')}.", known.fix, status=500, code="gpu_error")
    fix = "See the engine's log; another model may work."
    return EngineError(f"{what}: {type(exc).__name__}: {text}.", fix, status=500, code="engine_error")


def is_out_of_memory(exc: Exception) -> bool:
    """torch has a class of its own for a GPU; on a processor it only says so."""
    said = " ".join(str(exc).split())
    return type(exc).__name__ == "OutOfMemoryError" or isinstance(exc, MemoryError) or "not enough memory" in said


def stopping() -> EngineError:
    return EngineError("The engine is stopping.", "Ask again in a few seconds.", status=503, code="engine_stopping")


def unloaded() -> EngineError:
    return EngineError("The engine gave its memory to a training job.", "Ask again later.", status=503, code="engine_unloaded")


def silent() -> EngineError:
    """The process that held the model lived and did not answer, so it was ended."""
    said = "The process that holds the model did not answer any more and is started anew."
    return EngineError(said, "Ask again in a few seconds.", status=503, code="engine_restarting", retry_after=5)


def ended(code: int | None) -> EngineError:
    """The process that held the model is gone; -9 is how the kernel ends one for want of memory."""
    why = f"exit {code}"
    if code is not None and code < 0:
        why = f"signal {-code}"
    return EngineError(
        f"The process that held the model ended in the middle of the answer ({why}).",
        "Ask again: it is started anew. If it happens each time, the model needs more memory than there is: choose a smaller one, or NF4.",
        status=502,
        code="engine_gone",
    )


def yielded(lease: Lease, why: str) -> EngineError:
    """Says whom the memory was given to, so that the page can say until when."""
    return EngineError(
        f"The engine has left its memory to {lease.job} until that job ends: {why}.",
        "Ask again then, choose a smaller model, or pause the job.",
        status=503,
        code="engine_yielded",
        job=lease.job,
        retry_after=60,
    )
