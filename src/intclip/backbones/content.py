"""Content of weights as hashes."""

import hashlib
import json

import torch
from torch import Tensor, nn


def digest(content: object) -> str:
    """SHA-256 of plain data, through its sorted JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def tensor_hash(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes."""
    content = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(content.view(torch.uint8).numpy().data).hexdigest()


def tensor_hashes(module: nn.Module) -> list[list[object]]:
    """Name, shape and hash of each tensor of a module's state."""
    return [[name, list(tensor.shape), tensor_hash(tensor)] for name, tensor in module.state_dict().items()]
