"""The torch modules that engines compile: normalised pixels in, named tensors out."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.inference.card import ATTENTION_OUTPUT, CHANNEL_PREFIX, EMBEDDING, MAP_PREFIX
from intclip.methods.aggregation import ATTENTION
from intclip.methods.base import Method, Output


class HeadGraph(nn.Module):
    """A method's computation on a backbone's frozen features.

    Text features are constants, because methods cache them in evaluation.

    Args:
        method: The trained method.
        exclusive: Whether exactly one label applies: softmax instead of sigmoid.
        maps: Also return the method's region logits, as "map_sight" and so on, and its "attention", if any.
        embedding: Also return the backbone's image embedding, unit length, as "embedding".
    """

    def __init__(self, method: Method, *, exclusive: bool, maps: bool, embedding: bool = False) -> None:
        super().__init__()
        self.method, self.exclusive, self.maps = method.eval(), exclusive, maps
        self.embedding = embedding
        self.needs: tuple[FeatureName, ...] = tuple(dict.fromkeys((*method.needs, *(("pooled",) if embedding else ()))))

    def forward(self, features: Features) -> dict[str, Tensor]:
        """Compute "probabilities", "logits" (B, K), "embedding" (B, D), maps (B, K, H, W) from the features `needs`."""
        output = self.method(features, maps=self.maps)
        named = probabilities_of(self.method, output, exclusive=self.exclusive)
        if self.embedding:
            named[EMBEDDING] = nn.functional.normalize(features["pooled"].float(), dim=1)
        if self.maps and ATTENTION in output.extras:
            named[ATTENTION_OUTPUT] = output.extras[ATTENTION].float()
        return named | {MAP_PREFIX + name: value.float() for name, value in output.maps.items()}


class PhotoGraph(nn.Module):
    """Trunk, deep layers and a method's head as one module; arguments as for `HeadGraph`."""

    def __init__(self, method: Method, *, exclusive: bool, maps: bool, embedding: bool = False) -> None:
        super().__init__()
        self.head = HeadGraph(method, exclusive=exclusive, maps=maps, embedding=embedding)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the outputs of `HeadGraph` from normalised pixels (B, 3, S, S)."""
        features = self.head.method.backbone.features(pixels, self.head.needs)
        outputs: dict[str, Tensor] = self.head(features)
        return outputs


def probabilities_of(method: Method, output: Output, *, exclusive: bool) -> dict[str, Tensor]:
    """Return "probabilities" and "logits" (B, K), and those of single channels if the method has them."""

    def squash(logits: Tensor) -> Tensor:
        return logits.softmax(dim=1) if exclusive else logits.sigmoid()

    logits = output.logits.float() / method.temperature
    named = {"probabilities": squash(logits), "logits": logits}
    for name in method.alone if len(method.alone) > 1 else ():
        if name in output.extras:
            named[CHANNEL_PREFIX + name] = squash(output.extras[name].float() / method.temperature)
    return named


class FeatureGraph(nn.Module):
    """A backbone's frozen features as one module, for the feature cache."""

    def __init__(self, backbone: Backbone, names: Iterable[FeatureName]) -> None:
        super().__init__()
        self.backbone, self.names = backbone, tuple(names)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the named features of pixels (B, 3, S, S)."""
        return self.backbone.features(pixels, self.names)


def evidence_of(method: Method) -> tuple[list[str], bool]:
    """Return the names of a method's evidence maps, and whether it has an attention."""
    if "image" not in method.channels:
        return [], False
    with torch.no_grad():
        features = method.backbone.features(torch.from_numpy(example_pixels(method.backbone)), method.needs)
        output = method(features, maps=True)
    return list(output.maps), ATTENTION in output.extras


def example_pixels(backbone: Backbone, batch: int = 2) -> npt.NDArray[np.float32]:
    """Return a fixed batch of noise (B, 3, S, S) for tracing."""
    size = backbone.image_size
    return np.random.default_rng(0).standard_normal((batch, 3, size, size)).astype(np.float32)
