"""Content of weights as hashes."""

import hashlib

import torch
from torch import Tensor, nn


def tensor_hash(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's bytes."""
    content = tensor.detach().cpu().contiguous().flatten()
    return hashlib.sha256(content.view(torch.uint8).numpy().data).hexdigest()


def tensor_hashes(module: nn.Module) -> list[list[object]]:
    """Return name, shape and hash of each tensor of a module's state."""
    return [[name, list(tensor.shape), tensor_hash(tensor)] for name, tensor in module.state_dict().items()]
