"""SST: label features by semantic decoupling and a label graph, supervised by pairs of labels and of photos.

Chen, Pu, Wu, Xie, Lin: Structured Semantic Transfer for Multi-Label Recognition with Partial Labels, AAAI 2022.
README.md in this folder has the equations and the differences from the released code.
"""

from collections.abc import Iterable, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import asymmetric_loss_with_logits, binary_cross_entropy_with_logits
from intclip.methods.base import Method, Options, Output, ParameterGroup
from intclip.methods.label_graph import LabelCounts, label_embeddings
from intclip.methods.query_decoder import GroupLinear
from intclip.methods.region_maps import attention_map
from intclip.methods.sst.parts import (
    GatedGraph,
    PairHead,
    SemanticDecoupling,
    contrastive_loss,
    inter_pseudo_labels,
    intra_pseudo_labels,
)
from intclip.methods.visual_map import MapOptions, VisualMap, deep_and_rest

_RISING = ("contrastive", "cooccurrence")


class SstOptions(Options, frozen=True):
    """Options of SST; the defaults are the released code's.

    Attributes:
        visual: Feature map, and whether a copy of the deep layers is trained.
        dim: Channels after the 1×1 convolution, and width of the label features.
        inner: Common width of regions and label embeddings, and of the labels of a pair.
        steps: Number of steps of the gated graph network.
        sentence_form: Form of the labels' sentences, encoded by the backbone's text tower.
        cooccurrence: Weight of the pairs' asymmetric loss (γ₊ 1, γ₋ 2).
        contrastive: Weight of the contrastive loss between photos.
        pseudo: Weight of each pseudo-label loss; only for unknown labels.
        pseudo_epoch: Epoch, from 1, after which pseudo labels are used.
        margin: Initial minimum score for an unknown label to become a pseudo label.
        margin_decay: Decrease of the margin per epoch.
        margin_floor: Lower limit of the margin.
        deep_lr: Multiplier of the learning rate for the deep layers; 1 in the released code.
    """

    visual: MapOptions = MapOptions()
    dim: int = Field(default=1024, gt=0)
    inner: int = Field(default=512, gt=0)
    steps: int = Field(default=3, ge=1)
    sentence_form: str = "fine"
    cooccurrence: float = Field(default=10.0, ge=0)
    contrastive: float = Field(default=0.05, ge=0)
    pseudo: float = Field(default=1.0, ge=0)
    pseudo_epoch: int = Field(default=5, ge=0)
    margin: float = Field(default=0.95, ge=0, le=1)
    margin_decay: float = Field(default=0.025, ge=0)
    margin_floor: float = Field(default=0.75, ge=0, le=1)
    deep_lr: float = Field(default=1.0, gt=0)


class SST(Method):
    """SST for any backbone; its losses are means over known entries.

    Attributes:
        adjacency: P(j | i) of the training labels (K, K), 1 on the diagonal.
        epochs: Completed epochs, which determine the margin of pseudo labels.
        photos: Number of photos of the training split.
        seen: Number of photos seen by this process in the first epoch.
    """

    Options = SstOptions
    options: SstOptions
    label_text: Tensor
    adjacency: Tensor
    epochs: Tensor
    photos: Tensor
    seen: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: SstOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.visual = VisualMap(backbone, options.visual)
        self.needs = self.visual.needs
        classes, dim = len(taxonomy), options.dim
        text = label_embeddings(backbone.text, taxonomy, options.sentence_form)
        # Not stored: derived from the sentences, which are in the bundle.
        self.register_buffer("label_text", text, persistent=False)
        self.register_buffer("adjacency", torch.eye(classes, device=text.device))
        self.register_buffer("epochs", torch.zeros((), dtype=torch.int64))
        self.register_buffer("photos", torch.ones((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.project = nn.Sequential(nn.Conv2d(self.visual.channels, dim, 1, bias=False), nn.BatchNorm2d(dim))
        self.decoupling = SemanticDecoupling(dim, text.shape[1], options.inner)
        # Not `graph`: traced modules have an attribute of that name, and OpenVINO would lose the layer.
        self.propagation = GatedGraph(dim, options.steps)
        self.joint = nn.Linear(2 * dim, dim)
        self.head = GroupLinear(classes, dim)
        # Only parts with a loss weight, so that every parameter is trained.
        self.pairs = PairHead(classes, dim, options.inner) if options.cooccurrence and classes > 1 else None

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute the co-occurrence of training labels, and count the photos of an epoch."""
        counts, photos = LabelCounts(len(self.taxonomy)), 0
        for _, targets in batches:
            counts.add(targets)
            photos += len(targets)
        self.adjacency.copy_(counts.conditional())
        self.photos.fill_(max(photos, 1))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "fused" is each label's region weights, positive where above uniform.

        In training, extras are "label_features" (B, K, d) and "pairs" (B, K(K − 1)/2).
        """
        visual = self.project(self.visual(self.backbone, features))
        found, weights = self.decoupling(visual.flatten(2).transpose(1, 2), self.label_text)
        mixed = self.propagation(found, self.adjacency)
        output = Output(self.head(torch.tanh(self.joint(torch.cat([mixed, found], dim=2)))))
        if self.training:
            output.extras["label_features"] = found
            if self.pairs is not None:
                output.extras["pairs"] = self.pairs(found)
        if maps:
            output.maps["fused"] = attention_map(weights.view(*weights.shape[:2], *visual.shape[2:]))
        return output

    def training_loss(self, views: Sequence[Features], targets: Tensor) -> dict[str, Tensor]:
        """Return the loss; the weights of pairs and contrast increase from 0 during the first epoch."""
        terms = super().training_loss(views, targets)
        if self.epochs > 0:
            return terms
        processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        share = (processes * self.seen / self.photos).clamp(max=1)
        self.seen += len(targets)
        return {name: term * share if name in _RISING else term for name, term in terms.items()}

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the partial cross-entropy; in training also pairs, contrast, and from their epoch pseudo labels."""
        options = self.options
        terms = {"classification": binary_cross_entropy_with_logits(output.logits, targets, reduction="mean")}
        found, pairs = output.extras.get("label_features"), output.extras.get("pairs")
        if found is None:
            return terms
        if options.contrastive:
            terms["contrastive"] = options.contrastive * contrastive_loss(found, targets)
        if pairs is not None and self.pairs is not None:
            together = asymmetric_loss_with_logits(
                pairs, self.pairs.targets(targets), gamma_pos=1, gamma_neg=2, margin=0.05, reduction="mean"
            )
            terms["cooccurrence"] = options.cooccurrence * together
        if options.pseudo and self.epochs >= options.pseudo_epoch:
            margin = self.pseudo_margin()
            made = {"inter": inter_pseudo_labels(found.detach(), targets, margin)}
            if pairs is not None and self.pairs is not None:
                made["intra"] = intra_pseudo_labels(self.pairs.matrix(pairs.detach()), targets, margin)
            for name, labels in made.items():
                loss = binary_cross_entropy_with_logits(output.logits, labels, reduction="mean")
                terms[f"{name}_pseudo"] = options.pseudo * loss
        return terms

    def pseudo_margin(self) -> float:
        """Return the margin of the current epoch."""
        options = self.options
        passed = max(int(self.epochs) - options.pseudo_epoch, 0)
        return max(options.margin - options.margin_decay * passed, options.margin_floor)

    def after_epoch(self, epoch: int) -> None:
        """Count epochs."""
        self.epochs.fill_(epoch)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.visual.branch, self.options.deep_lr)
