"""The Intentonomy baseline: an image tower with a loss that localises evidence, and optionally hashtags.

Jia, Wu, Reiter, Cardie, Belongie, Lim: Intentonomy, CVPR 2021, Eq. 2 and 3, and its released localisation loss.
README.md in this folder has the equations.
"""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.asl_resnet.model import AslResnet, AslResnetOptions
from intclip.methods.base import Output
from intclip.methods.loss_options import LossOptions


class IntentonomyOptions(AslResnetOptions, frozen=True):
    """Options of the Intentonomy baseline: plain image tower, localisation loss, and hashtags.

    Attributes:
        loss: The classification loss. The published code has none; binary cross-entropy is our choice.
        localisation: α, the weight of the localisation loss, which requires masks (`data.masks`).
        objects: Classes with evidence on objects; None for the taxonomy's subset content, object.
        contexts: Classes with evidence off objects; None for the taxonomy's subset content, context.
        positive_share: Minimum share of votes of labels in the localisation loss: more than one of three.
        cam_gradient: The activation maps have a gradient. In the released code they are detached (False), so the
            term does not train anything.
        hashtags: Also use the photo's text, if any, by a linear layer on its embedding.
        text_dropout: Probability of dropping a photo's text in training, so that photos alone work too.
    """

    loss: LossOptions = LossOptions(kind="bce", reduction="batch")
    localisation: float = Field(default=0.1, ge=0)
    objects: tuple[str, ...] | None = None
    contexts: tuple[str, ...] | None = None
    positive_share: float = Field(default=0.5, gt=0, le=1)
    cam_gradient: bool = True
    hashtags: bool = False
    text_dropout: float = Field(default=0.3, ge=0, lt=1)


class Intentonomy(AslResnet):
    """Mean over regions and linear layer, class activation maps constrained by masks, and a linear layer on text."""

    Options = IntentonomyOptions
    options: IntentonomyOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: IntentonomyOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        content = taxonomy.subsets.get("content", {})
        chosen = {"object": options.objects, "context": options.contexts}
        for kind, names in chosen.items():
            rows = [taxonomy.index(name) for name in (content.get(kind, ()) if names is None else names)]
            self.register_buffer(kind, torch.tensor(rows, dtype=torch.int64), persistent=False)
        located = options.localisation > 0 and any(self.get_buffer(kind).numel() for kind in chosen)
        self.extra_inputs = (*(("mask",) if located else ()), *(("text",) if options.hashtags else ()))
        self.words = nn.Linear(backbone.text.embed_dim, len(taxonomy), bias=False) if options.hashtags else None

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K), including the text's part, if any; the map "fused" is the head at every region.

        In training, the extra "mask" (B, 1, S, S) is the one in the features.
        """
        output = super().forward(features, maps=maps)
        if self.words is not None and "text" in features:
            text = features["text"]
            if self.training and self.options.text_dropout:
                kept = torch.rand(text.shape[0], 1, device=text.device) >= self.options.text_dropout
                text = text * kept
            output.logits = output.logits + self.words(text)
        if "mask" in features:
            output.extras["mask"] = features["mask"]
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the classification loss, and with masks the localisation loss."""
        terms = super().loss(output, targets)
        if "mask" in output.extras and "mask" in self.extra_inputs:
            cams = activation_maps(output.extras["visual"], self.head.weight)
            located = localisation_loss(
                cams if self.options.cam_gradient else cams.detach(),
                output.extras["mask"],
                targets >= self.options.positive_share,
                objects=self.get_buffer("object"),
                contexts=self.get_buffer("context"),
            )
            terms["localisation"] = self.weighed(self.options.localisation * located, targets.shape[0])
        return terms


def activation_maps(visual: Tensor, weight: Tensor) -> Tensor:
    """Return Grad-CAM of every class, (B, K, H, W), each map scaled to minimum 0 and maximum 1.

    For a linear layer on the mean of the regions, Grad-CAM has the closed form relu(Σ_c w_kc x_c) / N, so it needs no
    second pass and is differentiable.

    Args:
        visual: (B, C, H, W).
        weight: (K, C).
    """
    cams = F.relu(torch.einsum("bchw,kc->bkhw", visual, weight))
    cams = cams - cams.amin(dim=(2, 3), keepdim=True)
    return cams / (cams.amax(dim=(2, 3), keepdim=True) + 1e-8)


def localisation_loss(cams: Tensor, masks: Tensor, positive: Tensor, *, objects: Tensor, contexts: Tensor) -> Tensor:
    """Mean evidence of object classes off objects, and of context classes on objects (Eq. 2 and 3).

    [Σ_O y · Σ(cam ∘ (1 − mask)) / |O| + Σ_C y · Σ(cam ∘ mask) / |C|] / Σ y, over the photos with a mask.

    Args:
        cams: (B, K, H, W) in [0, 1].
        masks: (B, 1, S, S) in [0, 1], averaged to H × W; NaN where a photo has none.
        positive: (B, K), y.
        objects: Object classes (|O|,).
        contexts: Context classes (|C|,).
    """
    there = ~masks.flatten(1).isnan().any(dim=1)
    mask = F.adaptive_avg_pool2d(masks.nan_to_num(0).to(cams), (cams.shape[2], cams.shape[3]))
    y = (positive & there[:, None]).to(cams)
    total = cams.new_zeros(())
    for classes, wrong in ((objects, 1 - mask), (contexts, mask)):
        if classes.numel():
            total = total + (y[:, classes] * (cams[:, classes] * wrong).sum(dim=(2, 3))).sum() / classes.numel()
    return total / y.sum().clamp_min(1)
