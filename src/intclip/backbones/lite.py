"""`lite` and `lite2`: the embedded backbones, EfficientNet-Lite0 and 2 (ImageNet) in the space of MiniLM-L6 sentences.

Both towers' weights come from packages. What joins them is a small map from the image tower's last features into the
sentence space, trained by `intclip lite-align` and shipped beside this file with its card.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor, nn

from intclip.backbones.architecture import Split
from intclip.backbones.base import Backbone, ImageHead
from intclip.backbones.checkpoint_files import find_weights, read_state_dict
from intclip.backbones.efficientnet_lite import HEAD_CHANNELS, ChannelsLast, build_layers, load_layers, stage_maps
from intclip.backbones.lite_towers import LITE_TOWERS, TEXT_PACKAGE, package_folder
from intclip.backbones.minilm import load_tokenizer, minilm_from_state_dict
from intclip.backbones.preprocess import Preprocess
from intclip.errors import CheckpointError, IntclipError
from intclip.files import atomic_path

TRUNK_STAGES: dict[Split, int] = {"paper": 5, "released": 3}
"""Stages in the trunk: it ends at the 14 × 14 map, or at the 28 × 28 one as in the released code's split."""
IMAGE_SIZE = 224
STRIDE = 32

# EfficientNet-Lite's own preprocessing: (value - 127) / 128 of values 0 to 255.
_MEAN, _STD = 127 / 255, 128 / 255


class LiteHead(ImageHead):
    """The map into the sentence space, y = W √x + b: the same at every position and for the mean over positions.

    x is the last feature map, which ReLU6 keeps in [0, 6]. The root lets faint evidence count beside strong; it is
    worth about half a point of recall (lite_projection.md).
    """

    def __init__(self, channels: int, embed_dim: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, embed_dim)

    def project(self, x: Tensor) -> Tensor:
        """Points (…, D) of the sentence space, of features (…, C) within [0, 6]."""
        points: Tensor = self.projection(x.sqrt())
        return points

    def regions(self, deep: Tensor) -> Tensor:
        """Region features (B, D, H, W) in the sentence space."""
        return F.conv2d(deep.sqrt(), self.projection.weight[:, :, None, None], self.projection.bias)

    def pooled(self, deep: Tensor) -> Tensor:
        """Image embedding (B, D), unnormalised: the projection of the mean over the positions."""
        return self.project(deep.mean(dim=(2, 3)))


class LiteBackbone(Backbone):
    """EfficientNet-Lite0 ("lite") or 2 ("lite2") and MiniLM-L6 in one space of D = 384.

    | split      | trunk                                | deep                                              |
    |------------|--------------------------------------|---------------------------------------------------|
    | "paper"    | stem, stages 1–5: (112, 14, 14)      | stages 6–7 and head convolution: (1280, 7, 7)     |
    | "released" | stem, stages 1–3: (40, 28, 28)       | stages 4–7 and head convolution: (1280, 7, 7)     |

    `lite2` has 120 channels for 112, 48 for 40, and more layers a stage: 1.4 times the parameters.

    Batch norms of the trunk are folded into its convolutions; those of `deep` keep fixed statistics and an affine part
    that trains in a copy.

    Attributes:
        split: See the table.
    """

    trunk: ChannelsLast
    deep: ChannelsLast

    def __init__(self, split: Split = "paper", name: str = "lite") -> None:
        super().__init__()
        self.name = name
        self.split: Split = split
        self.preprocess = Preprocess(size=IMAGE_SIZE, mean=(_MEAN,) * 3, std=(_STD,) * 3)
        self.grid = (IMAGE_SIZE // STRIDE,) * 2
        with torch.device("meta"):
            tower = LITE_TOWERS[name]
            self.trunk, self.deep = build_layers(tower.width, tower.depth, TRUNK_STAGES[split])

    def take(self, preprocess: Preprocess) -> None:
        """Look at photos in another way, at any multiple of 32 pixels a side; the grid grows with it."""
        if preprocess.size <= 0 or preprocess.size % STRIDE:
            raise IntclipError(
                f"{self.name} takes photos of a multiple of {STRIDE} pixels a side, not {preprocess.size}"
            )
        self.preprocess = preprocess
        self.grid = (preprocess.size // STRIDE,) * 2

    def stage_maps(self, pixels: Tensor) -> list[Tensor]:
        """Maps of strides 4, 8, 16 and 32: (B, 24, 56, 56), (B, 40, 28, 28), (B, 112, 14, 14), (B, 1280, 7, 7)."""
        return stage_maps([*self.trunk, *self.deep], pixels)


def build_lite(
    split: Split = "paper", name: str = "lite", *, projection: str | os.PathLike[str] | None = None
) -> LiteBackbone:
    """An embedded backbone, frozen; it needs no network.

    Args:
        split: Where the trunk ends; see `LiteBackbone`.
        name: One of `LITE_TOWERS`.
        projection: What `intclip lite-align` wrote; the shipped one by default.

    Raises:
        CheckpointError: A package with the weights is not installed, or a file is damaged or of another shape.
    """
    backbone = build_towers(split, name)
    backbone.head, backbone.image_moments = read_projection(projection or LITE_TOWERS[name].projection)
    backbone.freeze()
    return backbone


def build_towers(split: Split = "paper", name: str = "lite") -> LiteBackbone:
    """The two towers of an embedded backbone with nothing that joins them, to train that (`intclip lite-align`).

    Args:
        split: See `LiteBackbone`.
        name: One of `LITE_TOWERS`.

    Raises:
        CheckpointError: A package with the weights is not installed, or a file is damaged.
    """
    backbone = LiteBackbone(split, name)
    load_layers(backbone.trunk, backbone.deep, _read_tower(name))
    folder = package_folder(TEXT_PACKAGE) / "model"
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    backbone.text = minilm_from_state_dict(_read(folder / "model.safetensors"), tokenizer)
    backbone.embed_dim = backbone.text.embed_dim
    backbone.freeze()
    return backbone


def imagenet_classifier(name: str = "lite") -> tuple[Tensor, Tensor]:
    """Weight (1000, 1280) and bias (1000,) of an image tower's own classifier over the mean of its last map.

    Raises:
        CheckpointError: The package with the weights is not installed, or the file is damaged.
    """
    state = _read_tower(name)
    return state["_fc.weight"], state["_fc.bias"]


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


def read_projection(path: str | os.PathLike[str]) -> tuple[LiteHead, tuple[Tensor, Tensor]]:
    """The head and the image moments that `write_projection` wrote, in single precision.

    Raises:
        CheckpointError: There is no such file, or it holds other tensors.
    """
    state = {key: tensor.float() for key, tensor in _read(find_weights(Path(path))).items()}
    try:
        moments = state.pop("moments.mean"), state.pop("moments.covariance")
        embed_dim = len(moments[0])
        with torch.device("meta"):
            head = LiteHead(HEAD_CHANNELS, embed_dim)
        head.load_state_dict(state, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} holds no projection of lite: {reason}; write one with lite-align") from error
    return head, moments


def _read_tower(name: str) -> dict[str, Tensor]:
    tower = LITE_TOWERS[name]
    return _read(package_folder(tower.package) / tower.file)


def _read(path: Path) -> dict[str, Tensor]:
    return {key: value for key, value in read_state_dict(path).items() if isinstance(value, Tensor)}
