"""Small tensors on their way to a device, without making anybody wait."""

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on `device`, in `dtype`. A GPU takes it when it gets there; the CPU goes on.

    From memory that is not pinned, CUDA copies only after all that it was asked to do before, and
    the CPU waits for it. What is pinned here is not used again before it has arrived.
    """
    if torch.device(device).type == "cuda" and not tensor.is_cuda and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True).to(dtype or tensor.dtype)
