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
"""Stages in the trunk: it ends at the 14 × 14 map, or at the 28 × 28 one as in the released code's split."""
IMAGE_SIZE = 224
STRIDE = 32

TOP_CLASSES = 10
"""ImageNet classes of a photo that count; ConSE's own choice."""

# EfficientNet-Lite's own preprocessing: (value - 127) / 128 of values 0 to 255.
_MEAN, _STD = 127 / 255, 128 / 255


class LiteHead(ImageHead):
    """From the last feature map x into the sentence space: y = u(W √x + b) + pᵀ N.

    The first part is a learned linear map at unit length (u); x is kept in [0, 6] by ReLU6, and the root lets faint
    evidence count beside strong. The second part keeps what the image tower's own ImageNet classifier knows, as
    ConSE does (Norouzi et al., ICLR 2014): p holds the probabilities of the photo's `TOP_CLASSES` most probable
    classes, N the sentence embeddings of the class names, of length `class_share`.

    Of a single position, p(r) is the softmax over its own logits of those classes and the other classes' logits of the
    whole photo, so a map whose positions are all the same has the embedding of its mean everywhere.

    Args:
        classes: The image tower's.

    Attributes:
        projection: W (D, C) and b (D,).
        class_share: Length of the rows of N, a scalar.
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
        # Not stored with the projection: they come with the tower's package and beside the projection.
        self.register_buffer("names", names, persistent=False)
        self.register_buffer("class_weight", weight, persistent=False)
        self.register_buffer("class_bias", bias, persistent=False)

    def project(self, x: Tensor) -> Tensor:
        """Points (B, D) of the sentence space, of the features (B, C) of whole photos."""
        return F.normalize(self.projection(x.sqrt()), dim=1) + self.class_part(x)

    def class_part(self, x: Tensor) -> Tensor:
        """pᵀ N (B, D) of the features (B, C) of whole photos."""
        found = F.linear(x, self.class_weight, self.class_bias).softmax(dim=1).topk(self.top, dim=1)
        part: Tensor = (found.values.unsqueeze(1) @ self.names[found.indices]).squeeze(1)
        return self.class_share * part

    def regions(self, deep: Tensor) -> Tensor:
        """Region features (B, D, H, W) in the sentence space."""
        points = F.conv2d(deep.sqrt(), self.projection.weight[:, :, None, None], self.projection.bias)
        top, rest = self._top_classes(deep.mean(dim=(2, 3)))
        logits = self.class_weight[top] @ deep.flatten(2) + self.class_bias[top].unsqueeze(2)
        shares = torch.cat([logits, rest.expand(-1, -1, logits.shape[2])], dim=1).softmax(dim=1)[:, :-1]
        classes = self.names[top].transpose(1, 2) @ shares
        return F.normalize(points, dim=1) + self.class_share * classes.view_as(points)

    def pooled(self, deep: Tensor) -> Tensor:
        """Image embedding (B, D), not of unit length: of the mean over the positions."""
        return self.project(deep.mean(dim=(2, 3)))

    def _top_classes(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Most probable classes (B, T) of photos with mean features x, and the log of the others' mass (B, 1, 1)."""
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
    channels of both, one after the other: 232, 88, and 2,560 behind the deep layers.

    Batch norms of the trunk are folded into its convolutions; those of `deep` keep fixed statistics and an affine part
    that trains in a copy.

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
        """SHA-256 of the files that the weights come from.

        Not of the tensors: batch norms are folded into convolutions, and the last bits of that differ by processor.
        """
        return embedded_identity(self.name)

    def take(self, preprocess: Preprocess) -> None:
        """Change the preprocessing, with sides of any multiple of 32 pixels; the grid scales with it."""
        if preprocess.size <= 0 or preprocess.size % STRIDE:
            raise IntclipError(f"{self.name} needs photo sides of a multiple of {STRIDE} pixels, not {preprocess.size}")
        self.preprocess = preprocess
        self.grid = (preprocess.size // STRIDE,) * 2

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """Maps of strides 4, 8, 16 and 32: (B, 24, 56, 56), (B, 40, 28, 28), (B, 112, 14, 14), (B, 1280, 7, 7)."""
        found = [stage_maps([*trunk, *deep], pixels) for trunk, deep in self.parts()]
        return [torch.cat(maps, dim=1) for maps in zip(*found, strict=True)]

    def tower(self, name: str) -> Backbone:
        """A view of the tower that is the backbone `name` by itself; see `TowerView`."""
        towers = LITE_BACKBONES[self.name].towers
        if len(towers) == 1:
            return super().tower(name)
        if name not in towers:
            raise IntclipError(f"{self.name} has no image tower {name!r}; its towers: {', '.join(towers)}")
        return TowerView(self, name)

    def channels_of(self, place: int) -> tuple[int, int]:
        """First channel and number of channels of one tower in the trunk's features."""
        channels = self._trunk_channels()
        return sum(channels[:place]), channels[place]

    def _trunk_channels(self) -> list[int]:
        towers = [LITE_TOWERS[name] for name in LITE_BACKBONES[self.name].towers]
        return [scaled_stages(tower.width, tower.depth)[TRUNK_STAGES[self.split] - 1].channels for tower in towers]

    def parts(self) -> list[tuple[ChannelsLast, ChannelsLast]]:
        """Trunk and deep layers of each tower."""
        trunks, deeps = ([*part.towers] if isinstance(part, SideBySide) else [part] for part in (self.trunk, self.deep))
        return cast("list[tuple[ChannelsLast, ChannelsLast]]", list(zip(trunks, deeps, strict=True)))


class TowerView(Backbone):
    """One of several towers, for a method that trains a copy of that tower's deep layers alone.

    Features are those of all towers, so that methods over several views read one cache; `regions`, what is seen, is
    what all see together. `deep` takes its own channels of the trunk's features, and `head` is the tower's own
    projection, into the same space. Stage maps are its own, and not among the features of all.

    Args:
        whole: The towers side by side.
        name: The name of one of them as a backbone by itself, such as "lite2".
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
        """The tower's own; see `LiteBackbone.stage_maps`."""
        trunk, deep = self._own
        return stage_maps([*trunk, *deep], pixels)

    def features(self, pixels: Tensor, names: Iterable[FeatureName]) -> Features:
        """Those of all towers, but for the stage maps; see `Backbone.features`."""
        wanted = set(names)
        own = {name for name in wanted if name.startswith("stage")}
        found = self.whole.features(pixels, wanted - own)
        return found | (super().features(pixels, own) if own else {})


def build_lite(
    split: Split = "paper", name: str = "lite", *, projection: str | os.PathLike[str] | None = None
) -> LiteBackbone:
    """An embedded backbone, frozen; it needs no network.

    Args:
        split: Where the trunk ends; see `LiteBackbone`.
        name: One of `LITE_BACKBONES`.
        projection: What `intclip lite-align` wrote; the shipped one by default.

    Raises:
        CheckpointError: A package with the weights is not installed, or a file is damaged or of another shape.
    """
    backbone = build_towers(split, name)
    backbone.head, backbone.image_moments = read_projection(
        projection or LITE_BACKBONES[name].projection, imagenet_classes(name)
    )
    backbone.freeze()
    return backbone


def build_towers(split: Split = "paper", name: str = "lite") -> LiteBackbone:
    """The two towers of an embedded backbone with nothing that joins them, to train that (`intclip lite-align`).

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
    """What an image tower was trained to tell apart.

    Attributes:
        weight: (1000, C) of its classifier over the mean of the last map.
        bias: (1000,) of it.
        names: (1000, D), unit sentence embeddings of the class names, means over forms such as "a photo of a dog".
    """

    weight: Tensor
    bias: Tensor
    names: Tensor


def imagenet_classes(name: str = "lite") -> ImagenetClasses:
    """The classes of an embedded backbone.

    Several towers' logits are added: their weights stand one after the other, as their channels do.

    Raises:
        CheckpointError: A package with the weights is not installed, or a file is damaged.
    """
    states = [_read_tower(LITE_TOWERS[tower]) for tower in LITE_BACKBONES[name].towers]
    weight = torch.cat([state["_fc.weight"] for state in states], dim=1)
    bias = torch.stack([state["_fc.bias"] for state in states]).sum(dim=0)
    return ImagenetClasses(weight, bias, F.normalize(_read(CLASS_NAMES)["names"].float(), dim=1))


def write_projection(path: str | os.PathLike[str], head: LiteHead, moments: tuple[Tensor, Tensor]) -> None:
    """Write a projection in half precision, with the moments of image embeddings in single; whole or not at all.

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
    """The head and the image moments that `write_projection` wrote, in single precision.

    Args:
        path: The file.
        classes: The image tower's; see `imagenet_classes`.

    Raises:
        CheckpointError: The file does not exist, or it holds other tensors.
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
