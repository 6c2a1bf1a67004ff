"""One rule for the number format of trainer, engine and compressor."""

from __future__ import annotations

import pytest

from studio.catalogue.precision import compute_dtype


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "model_type", "dtype"),
    [
        ("cuda", True, "llama", "bfloat16"),
        ("cuda", True, "gemma3_text", "bfloat16"),
        ("cuda", False, "llama", "float16"),
        ("cuda", False, "gemma2", "float32"),
        ("cuda", False, "gemma3n_text", "float32"),
        ("cuda", False, "gemma", "float16"),
        ("cpu", True, "llama", "bfloat16"),
        ("cpu", False, "llama", "float32"),
    ],
)
def test_the_format_follows_device_and_family(device: str, has_bfloat16: bool, model_type: str, dtype: str) -> None:
    assert compute_dtype(device, has_bfloat16, model_type) == dtype
