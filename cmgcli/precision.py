"""Where bfloat16 matrix products are native."""

from __future__ import annotations

import torch


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices natively: it has avx512_bf16 or AMX."""
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def fast_bfloat16(device: str) -> bool:
    """Whether a device does: cuda from Ampere on, or this processor."""
    return torch.cuda.get_device_capability()[0] >= 8 if device == "cuda" else native_bfloat16()
