"""PIP-Net: classifies a photo by each class's nearest prototype; prototypes are recomputed after every epoch.

Wang, Yang, Zhao, Long, Li: Prototype-Based Intent Perception, IEEE TMM (2023), by its released code. README.md in
this folder has the equations.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import soft_cross_entropy
from intclip.methods.base import Method, Options, Output, ParameterGroup
from intclip.methods.pipnet.clustering import class_prototypes, diversity_step, matched
from intclip.methods.region_maps import region_map
from intclip.methods.visual_map import MapOptions, VisualMap, deep_and_rest


class PipnetOptions(Options, frozen=True):
    """Options of PIP-Net; the defaults are the released code's.

    Attributes:
        visual: Feature map, and whether a copy of the deep layers is trained; if not, nothing is trained, and the
            classifier uses only the prototypes.
        prototypes: Number M per class.
        temperature: τ of the softmax over classes.
        least_share: Minimum share of votes of photos for a class's prototypes: 0.5 excludes one vote of three. A class
            without such photos uses all photos with any vote.
        discard: Share of a class's photos to leave out: those least similar to its mean.
        momentum: Decay of a prototype when it is updated by an epoch's clusters.
        diversity: Step size for moving the classes' mean prototypes apart after each epoch; 0 disables it.
        deep_lr: Multiplier of the learning rate for the deep layers; half of the rate for the last stage in the
            released code.
    """

    visual: MapOptions = MapOptions()
    prototypes: int = Field(default=4, ge=1)
    temperature: float = Field(default=0.15, gt=0)
    least_share: float = Field(default=0.5, gt=0, le=1)
    discard: float = Field(default=0.2, ge=0, lt=1)
    momentum: float = Field(default=0.999, ge=0, le=1)
    diversity: float = Field(default=1e-3, ge=0)
    deep_lr: float = Field(default=0.5, gt=0)


class PipNet(Method):
    """PIP-Net for any backbone.

    Attributes:
        prototypes: (K, M, C), unit vectors.
        made: Whether a class has prototypes from photos (K,); a class without is never predicted.
    """

    Options = PipnetOptions
    options: PipnetOptions
    prototypes: Tensor
    made: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: PipnetOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        classes = len(taxonomy)
        if classes < 2:
            raise RecipeError("method pipnet needs at least two classes, and this taxonomy has one; use linear_probe")
        self.visual = VisualMap(backbone, options.visual)
        self.needs = self.visual.needs
        start = F.normalize(torch.randn(classes, options.prototypes, self.visual.channels), dim=2)
        self.register_buffer("prototypes", start)
        self.register_buffer("made", torch.zeros(classes, dtype=torch.bool))
        self.register_buffer("own", torch.eye(classes, dtype=torch.bool), persistent=False)
        self._photos: Iterable[tuple[Features, Tensor]] = ()

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute prototypes in one pass; keep the batches for the passes after each epoch."""
        self._photos = batches
        found, made = self._clusters()
        self.prototypes.copy_(torch.where(made[:, None, None], found, self.prototypes))
        self.made.copy_(made)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K) whose sigmoid is the softmax over classes; "fused" is each region's similarity.

        The extra "similarities" (B, K) is the input of the softmax. For exclusive labels, whose probabilities are the
        softmax of the logits, it equals the logits.
        """
        visual = self.visual(self.backbone, features)
        scores = self._similarities(visual.mean(dim=(2, 3)))
        logits = scores
        if not self.taxonomy.exclusive:
            # sigmoid(z_c − log Σ_{j ≠ c} exp z_j) = softmax(z)_c
            others = scores[:, None].masked_fill(self.get_buffer("own"), -1e9).logsumexp(dim=2)
            logits = scores - others
        output = Output(logits, extras={"similarities": scores})
        if maps:
            output.maps["fused"] = region_map(self._similarities, visual)
        return output

    def _similarities(self, vectors: Tensor) -> Tensor:
        """Return max_m cos(x, p_cm) / τ (…, K) of vectors (…, C); very negative for a class without prototypes."""
        cosines = F.normalize(vectors, dim=-1) @ self.prototypes.flatten(0, 1).T
        # In single precision: half precision cannot represent the value for "never".
        best = cosines.float().view(*cosines.shape[:-1], *self.prototypes.shape[:2]).amax(dim=-1)
        return torch.where(self.made, best, -1.0) / self.options.temperature

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the cross-entropy of the softmax over classes against the shares of votes."""
        return {"classification": soft_cross_entropy(output.extras["similarities"], targets, reduction="batch")}

    def after_epoch(self, epoch: int) -> None:
        """Recompute clusters, update the matching prototypes, and move the classes apart."""
        options = self.options
        found, made = self._clusters()
        taken = options.momentum * self.prototypes + (1 - options.momentum) * matched(found, self.prototypes)
        moved = F.normalize(torch.where(made[:, None, None], taken, self.prototypes), dim=2)
        if options.diversity:
            moved = F.normalize(diversity_step(moved, options.diversity), dim=2)
        self.prototypes.copy_(moved)

    @torch.no_grad()
    def _clusters(self) -> tuple[Tensor, Tensor]:
        """Return prototypes (K, M, C) with the current network, and which classes have any (K,)."""
        seen: list[Tensor] = []
        votes: list[Tensor] = []
        for features, targets in self._photos:
            seen.append(self.visual(self.backbone, features).mean(dim=(2, 3)).float().cpu())
            votes.append(targets.float().cpu())
        if not seen:
            return self.prototypes, self.made
        found, made = class_prototypes(
            torch.cat(seen),
            torch.cat(votes),
            self.options.prototypes,
            least_share=self.options.least_share,
            discard=self.options.discard,
        )
        return found.to(self.prototypes), made.to(self.made)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.visual.branch, self.options.deep_lr)
