"""Libraries imported without what makes their import slow. Knows no models."""

from __future__ import annotations


def import_bitsandbytes() -> None:
    """Import it with torch.compile out of the way.

    It wraps its plain fallbacks in torch.compile at import: that pulls in the whole compiler (seconds), and would make
    their results depend on whether this machine has a C++ compiler.
    """
    import torch

    compiler = torch.compile
    torch.compile = lambda function=None, **_: function if function is not None else (lambda inner: inner)
    try:
        import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler
