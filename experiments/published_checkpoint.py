"""Checkpoints that were trained with the public code of Kascenas et al.

Their parameters are named as ours, so a checkpoint needs checking, not converting. The code:
https://github.com/AntanasKascenas/DenoisingAE ("Denoising Autoencoders for Unsupervised Anomaly
Detection in Brain MRI", MIDL 2022); it saves with torch.save a dict that holds `model_state_dict`.
"""

import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fewscan.experiments.unet import UNet, require_same_tensors
from fewscan.storage.errors import RunError

_STATE = "model_state_dict"
_EXPECTED = f"a file that torch.save wrote, of a dict whose {_STATE} holds the weights of a U-Net"


class PublishedCheckpoint(NamedTuple):
    """Weights, and the shape of the network that they fit: `UNet(**…)` loads them strictly."""

    state_dict: dict[str, Tensor]
    """float32, on the CPU."""
    in_channels: int
    out_channels: int
    width: int
    depth: int


def read_checkpoint(path: Path) -> PublishedCheckpoint:
    """Read the weights and find out the shape of their network.

    The names may have the `module.` in front that DataParallel leaves. Raises `RunError` if the
    file is missing, is not torch's, holds code, or holds the weights of another network.
    """
    state_dict = _weights(path, _load(path))
    try:
        width, in_channels = state_dict["down_path.0.block.1.weight"].shape[:2]
        out_channels = len(state_dict["last.weight"])
        depth = len({name.split(".")[1] for name in state_dict if name.startswith("down_path.")})
        with torch.device("meta"):
            expected = UNet(in_channels, out_channels, width, depth).state_dict()
    except (KeyError, ValueError, TypeError, IndexError) as error:
        names = ", ".join(list(state_dict)[:3]) or "nothing"
        raise RunError(
            f"the weights are not those of the published U-Net: they begin with {names}",
            where=path,
            expected="names like down_path.0.block.1.weight and last.weight",
            remedy="give a checkpoint of the DenoisingAE code, trained with its U-Net",
        ) from error
    require_same_tensors(
        expected,
        state_dict,
        remedy="give a checkpoint of the DenoisingAE code, trained with its U-Net "
        "(padding=True, norm='group', up_mode='upconv')",
        where=path,
    )
    return PublishedCheckpoint(state_dict, in_channels, out_channels, width, depth)


def _load(path: Path) -> Any:
    if not path.is_file():
        raise RunError(
            "the checkpoint is missing" if not path.exists() else "this is not a file",
            where=path,
            expected=_EXPECTED,
            remedy="check the path",
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path):
            raise _not_torch(path, error) from error
        raise RunError(
            "the file holds more than tensors and plain values: loading it would run its code",
            where=path,
            expected=f"a dict of plain values and a {_STATE} of tensors",
            remedy="if you trust the file, load it where it was made, with weights_only=False, and "
            f"save only the weights: torch.save({{'{_STATE}': model.state_dict()}}, FILE)",
        ) from error
    except Exception as error:  # its unpickler trips over bytes that are no pickle in many ways
        raise _not_torch(path, error) from error


def _not_torch(path: Path, error: Exception) -> RunError:
    return RunError(
        f"torch cannot read this file ({type(error).__name__})",
        where=path,
        expected=_EXPECTED,
        remedy="check that it is the checkpoint, and that it was copied whole",
    )


def _weights(path: Path, content: Any) -> dict[str, Tensor]:
    weights = content.get(_STATE) if isinstance(content, dict) else None
    if not (isinstance(weights, dict) and all(map(_is_named_tensor, weights.items()))):
        keys = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise RunError(
            f"no weights under {_STATE}; the file holds: {keys}",
            where=path,
            expected=_EXPECTED,
            remedy=f"save them so: torch.save({{'{_STATE}': model.state_dict()}}, FILE)",
        )
    return {name.removeprefix("module."): tensor.float() for name, tensor in weights.items()}


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)
