"""The embedded backbones: EfficientNet-Lite0, Lite2 or both (ImageNet) in the space of MiniLM-L6 sentences.

All towers' weights come from packages. A small projection from the image towers' last features to
the sentence space, trained by `intclip lite-align`, is shipped with its card.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from intclip.backbones.architecture import Split
from intclip.backbones.base import Backbone, FeatureName, Features, ImageHead
from intclip.backbones.checkpoint_files import read_state_dict
from intclip.backbones.efficientnet_lite import (
    ChannelsLast,
    build_layers,
    load_layers,
    scaled_stages,
    stage_maps,
)
from intclip.backbones.lite_towers import (
    CLASS_NAMES,
    LITE_BACKBONES,
    LITE_TOWERS,
    TEXT_PACKAGE,
    LiteTower,
    package_folder,
)
from intclip.backbones.minilm import minilm_from_state_dict
from intclip.backbones.preprocess import Preprocess
from intclip.backbones.side_by_side import OwnChannels, SideBySide
from intclip.backbones.sources import embedded_identity
from intclip.backbones.weight_files import find_weights
from intclip.backbones.wordpieces import load_tokenizer
from intclip.errors import CheckpointError, IntclipError
from intclip.files import atomic_path

TRUNK_STAGES: dict[Split, int] = {"paper": 5, "released": 3}
"""Number of stages in the trunk, which ends at the 14 × 14 map, or in the released code's split at 28 × 28."""
IMAGE_SIZE = 224
STRIDE = 32

TOP_CLASSES = 10
"""Number of ImageNet classes used per photo, as in ConSE."""

# EfficientNet-Lite's own preprocessing: (value - 127) / 128 for values 0 to 255.
_MEAN, _STD = 127 / 255, 128 / 255


class LiteHead(ImageHead):
    """Maps the last feature map x to the sentence space: y = u(W √x + b) + pᵀ N.

    The first term is a learned linear map, normalised (u) to unit length. x is in [0, 6] (ReLU6), and the square root
    preserves weak activations next to strong ones. The second term adds the image tower's ImageNet classifier, as in
    ConSE (Norouzi et al., ICLR 2014): p holds the probabilities of the photo's `TOP_CLASSES` most probable classes, N
    the sentence embeddings of the class names, with norm `class_share`.

    For a single position, p(r) is the softmax over its own logits of those classes and the whole photo's logits of the
    other classes. A map with equal positions therefore has the embedding of its mean at every position.

    Args:
        classes: The image tower's classes.

    Attributes:
        projection: W (D, C) and b (D,).
        class_share: Norm of the rows of N, a scalar.
    """

    class_share: Tensor
    names: Tensor
    class_weight: Tensor
    class_bias: Tensor

    def __init__(self, classes: "ImagenetClasses") -> None:
        super().__init__()
        weight, bias, names = classes
        self.projection = nn.Linear(weight.shape[1], names.shape[1])
        self.top = min(TOP_CLASSES, len(weight) - 1)
        self.register_buffer("class_share", torch.zeros(()))
        # Not stored with the projection: they come from the tower's package and a file beside the projection.
        self.register_buffer("names", names, persistent=False)
        self.register_buffer("class_weight", weight, persistent=False)
        self.register_buffer("class_bias", bias, persistent=False)

    def project(self, x: Tensor) -> Tensor:
        """Return the linear part (B, D), at unit length, of whole photos' features (B, C)."""
        return F.normalize(self.projection(x.sqrt()), dim=1) + self.class_part(x)

    def class_part(self, x: Tensor) -> Tensor:
        """Return pᵀ N (B, D) of whole photos' features (B, C)."""
        found = F.linear(x, self.class_weight, self.class_bias).softmax(dim=1).topk(self.top, dim=1)
        part: Tensor = (found.values.unsqueeze(1) @ self.names[found.indices]).squeeze(1)
        return self.class_share * part

    def regions(self, deep: Tensor) -> Tensor:
        """Return region features (B, D, H, W) in the sentence space."""
        points = F.conv2d(deep.sqrt(), self.projection.weight[:, :, None, None], self.projection.bias)
        top, rest = self._top_classes(deep.mean(dim=(2, 3)))
        logits = self.class_weight[top] @ deep.flatten(2) + self.class_bias[top].unsqueeze(2)
        shares = torch.cat([logits, rest.expand(-1, -1, logits.shape[2])], dim=1).softmax(dim=1)[:, :-1]
        classes = self.names[top].transpose(1, 2) @ shares
        return F.normalize(points, dim=1) + self.class_share * classes.view_as(points)

    def pooled(self, deep: Tensor) -> Tensor:
        """Return the image embedding (B, D), unnormalised, of the mean over positions."""
        return self.project(deep.mean(dim=(2, 3)))

    def _top_classes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the most probable classes (B, T) of mean features x, and the log of the others' mass (B, 1, 1)."""
        logits = F.linear(x, self.class_weight, self.class_bias)
        top = logits.topk(self.top, dim=1).indices
        others = logits.scatter(1, top, -torch.inf).logsumexp(dim=1)
        return top, others[:, None, None]


class LiteBackbone(Backbone):
    """EfficientNet-Lite0 ("lite"), 2 ("lite2") or both ("lite+lite2"), and MiniLM-L6, in one space of D = 384.

    | split      | trunk                                | deep                                              |
    |------------|--------------------------------------|---------------------------------------------------|
    | "paper"    | stem, stages 1–5: (112, 14, 14)      | stages 6–7 and head convolution: (1280, 7, 7)     |
    | "released" | stem, stages 1–3: (40, 28, 28)       | stages 4–7 and head convolution: (1280, 7, 7)     |

    `lite2` has 120 channels for 112, 48 for 40, and more layers a stage: 1.4 times the parameters. `lite+lite2` has the
    channels of both, concatenated: 232, 88, and 2,560 after the deep layers.

    Batch norms of the trunk are folded into its convolutions. Those of `deep` have fixed statistics and affine
    parameters that train in a copy.

    Attributes:
        split: See the table.
    """

    def __init__(self, split: Split = "paper", name: str = "lite") -> None:
        super().__init__()
        self.name = name
        self.split: Split = split
        self.preprocess = Preprocess(size=IMAGE_SIZE, mean=(_MEAN,) * 3, std=(_STD,) * 3)
        self.grid = (IMAGE_SIZE // STRIDE,) * 2
        frozen = TRUNK_STAGES[split]
        towers = [LITE_TOWERS[each] for each in LITE_BACKBONES[name].towers]
        with torch.device("meta"):
            parts = [build_layers(tower.width, tower.depth, frozen) for tower in towers]
        trunks, deeps = zip(*parts, strict=True)
        self.trunk, self.deep = trunks[0], deeps[0]
        if len(towers) > 1:
            self.trunk, self.deep = SideBySide(trunks), SideBySide(deeps, self._trunk_channels())

    def identity(self) -> str:
        """Return the SHA-256 of the weight files.

        Tensors are not hashed, because the last bits of folded batch norms differ between processors.
        """
        return embedded_identity(self.name)

    def take(self, preprocess: Preprocess) -> None:
        """Change the preprocessing; the side can be any multiple of 32 pixels, and the grid scales with it."""
        if preprocess.size <= 0 or preprocess.size % STRIDE:
            raise IntclipError(f"{self.name} needs photo sides of a multiple of {STRIDE} pixels, not {preprocess.size}")
        self.preprocess = preprocess
        self.grid = (preprocess.size // STRIDE,) * 2

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """Return maps of strides 4, 8, 16, 32: (B, 24, 56, 56), (B, 40, 28, 28), (B, 112, 14, 14), (B, 1280, 7, 7)."""
        found = [stage_maps([*trunk, *deep], pixels) for trunk, deep in self.parts()]
        return [torch.cat(maps, dim=1) for maps in zip(*found, strict=True)]

    def tower(self, name: str) -> Backbone:
        """Return a view of the tower of the single-tower backbone `name`; see `TowerView`."""
        towers = LITE_BACKBONES[self.name].towers
        if len(towers) == 1:
            return super().tower(name)
        if name not in towers:
            raise IntclipError(f"{self.name} has no image tower {name!r}; its towers: {', '.join(towers)}")
        return TowerView(self, name)

    def channels_of(self, place: int) -> tuple[int, int]:
        """Return the first channel and the number of channels of one tower in the trunk's features."""
        channels = self._trunk_channels()
        return sum(channels[:place]), channels[place]

    def _trunk_channels(self) -> list[int]:
        towers = [LITE_TOWERS[name] for name in LITE_BACKBONES[self.name].towers]
        return [scaled_stages(tower.width, tower.depth)[TRUNK_STAGES[self.split] - 1].channels for tower in towers]

    def parts(self) -> list[tuple[ChannelsLast, ChannelsLast]]:
        """Return trunk and deep layers of each tower."""
        trunks, deeps = ([*part.towers] if isinstance(part, SideBySide) else [part] for part in (self.trunk, self.deep))
        return cast("list[tuple[ChannelsLast, ChannelsLast]]", list(zip(trunks, deeps, strict=True)))


class TowerView(Backbone):
    """One of several towers, for a method that trains a copy of only that tower's deep layers.

    Features are those of all towers, so methods on several views share one cache, and `regions` combines all towers.
    `deep` uses the tower's channels of the trunk's features, and `head` is the tower's own projection to the same
    space. Stage maps are the tower's own and not part of the shared features.

    Args:
        whole: The backbone with all towers.
        name: Name of the tower's own backbone, such as "lite2".
    """

    def __init__(self, whole: LiteBackbone, name: str) -> None:
        super().__init__()
        place = LITE_BACKBONES[whole.name].towers.index(name)
        self.name, self.embed_dim = whole.name, whole.embed_dim
        self.grid, self.preprocess = whole.grid, whole.preprocess
        self.whole, self.trunk, self.text = whole, whole.trunk, whole.text
        self._own = whole.parts()[place]
        self.deep = OwnChannels(self._own[1], *whole.channels_of(place))
        self.head, self.image_moments = read_projection(LITE_BACKBONES[name].projection, imagenet_classes(name))
        self.freeze()

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the tower's own stage maps; see `LiteBackbone.stage_maps`."""
        trunk, deep = self._own
        return stage_maps([*trunk, *deep], pixels)

    def features(self, pixels: Tensor, names: Iterable[FeatureName]) -> Features:
        """Compute the features of all towers, without stage maps; see `Backbone.features`."""
        wanted = set(names)
        own = {name for name in wanted if name.startswith("stage")}
        found = self.whole.features(pixels, wanted - own)
        return found | (super().features(pixels, own) if own else {})


def build_lite(
    split: Split = "paper", name: str = "lite", *, projection: str | os.PathLike[str] | None = None
) -> LiteBackbone:
    """Build an embedded backbone, frozen, without network access.

    Args:
        split: Where the trunk ends; see `LiteBackbone`.
        name: One of `LITE_BACKBONES`.
        projection: Output file of `intclip lite-align`; default: the shipped one.

    Raises:
        CheckpointError: A package with weights is not installed, or a file is damaged or has other shapes.
    """
    backbone = build_towers(split, name)
    backbone.head, backbone.image_moments = read_projection(
        projection or LITE_BACKBONES[name].projection, imagenet_classes(name)
    )
    backbone.freeze()
    return backbone


def build_towers(split: Split = "paper", name: str = "lite") -> LiteBackbone:
    """Build the towers of an embedded backbone without the projection, to train it (`intclip lite-align`).

    Args:
        split: See `LiteBackbone`.
        name: One of `LITE_BACKBONES`.

    Raises:
        CheckpointError: A package with the weights is not installed, or a file is damaged.
    """
    backbone = LiteBackbone(split, name)
    for (trunk, deep), tower in zip(backbone.parts(), LITE_BACKBONES[name].towers, strict=True):
        load_layers(trunk, deep, _read_tower(LITE_TOWERS[tower]))
    folder = package_folder(TEXT_PACKAGE) / "model"
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    backbone.text = minilm_from_state_dict(_read(folder / "model.safetensors"), tokenizer)
    backbone.embed_dim = backbone.text.embed_dim
    backbone.freeze()
    return backbone


class ImagenetClasses(NamedTuple):
    """Classes that an image tower was trained on.

    Attributes:
        weight: (1000, C) of its classifier on the mean of the last map.
        bias: (1000,) of the classifier.
        names: (1000, D) unit sentence embeddings of the class names, means over templates such as "a photo of a dog".
    """

    weight: Tensor
    bias: Tensor
    names: Tensor


def imagenet_classes(name: str = "lite") -> ImagenetClasses:
    """Return the classes of an embedded backbone.

    The logits of several towers are added: their weights are concatenated like their channels.

    Raises:
        CheckpointError: A package with the weights is not installed, or a file is damaged.
    """
    states = [_read_tower(LITE_TOWERS[tower]) for tower in LITE_BACKBONES[name].towers]
    weight = torch.cat([state["_fc.weight"] for state in states], dim=1)
    bias = torch.stack([state["_fc.bias"] for state in states]).sum(dim=0)
    return ImagenetClasses(weight, bias, F.normalize(_read(CLASS_NAMES)["names"].float(), dim=1))


def write_projection(path: str | os.PathLike[str], head: LiteHead, moments: tuple[Tensor, Tensor]) -> None:
    """Write a projection in half precision and moments of image embeddings in single precision, atomically.

    Args:
        path: A safetensors file.
        head: The trained head.
        moments: Mean (D,) and covariance (D, D) of normalised image embeddings.

    Raises:
        StorageError: The file cannot be written.
    """
    tensors = {key: tensor.half().contiguous() for key, tensor in head.state_dict().items()}
    tensors |= {"moments.mean": moments[0].float(), "moments.covariance": moments[1].float()}
    with atomic_path(path) as partial:
        partial.write_bytes(save(tensors))


def read_projection(path: str | os.PathLike[str], classes: ImagenetClasses) -> tuple[LiteHead, tuple[Tensor, Tensor]]:
    """Read the head and the image moments of `write_projection`, in single precision.

    Args:
        path: The file.
        classes: The image tower's classes; see `imagenet_classes`.

    Raises:
        CheckpointError: The file does not exist or has other tensors.
    """
    state = {key: tensor.float() for key, tensor in _read(find_weights(Path(path))).items()}
    try:
        moments = state.pop("moments.mean"), state.pop("moments.covariance")
        head = LiteHead(classes)
        head.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a projection of lite: {reason}; write one with lite-align") from error
    return head, moments


def _read_tower(tower: LiteTower) -> dict[str, Tensor]:
    return _read(package_folder(tower.package) / tower.file)


def _read(path: Path) -> dict[str, Tensor]:
    return {key: value for key, value in read_state_dict(path).items() if isinstance(value, Tensor)}
