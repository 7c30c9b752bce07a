"""Logistic regression on the frozen image embedding, trained by the common loop."""

from collections.abc import Iterable

from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output
from intclip.methods.loss_options import LossOptions
from intclip.methods.probe_inputs import ProbeInput, Scaling, Vector, vector_needs
from intclip.methods.region_maps import region_map


class LinearProbeOptions(ClassifierOptions, frozen=True):
    """Options of the linear probe.

    Attributes:
        vector: Feature vector of a photo.
        scaling: Scaling of its coordinates.
        loss: The classification loss.
    """

    vector: Vector = "pooled"
    scaling: Scaling = "standardize"
    loss: LossOptions = LossOptions(kind="bce", reduction="batch")


class LinearProbe(Classifier):
    """One linear layer, initially zero, so every probability is initially one half."""

    Options = LinearProbeOptions
    options: LinearProbeOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: LinearProbeOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.needs = vector_needs(options.vector)
        self.input = ProbeInput(backbone.embed_dim, options.vector, options.scaling)
        self.linear = nn.Linear(self.input.width, len(taxonomy.names))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute mean and deviation of the inputs."""
        self.input.fit(batches)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); "fused" maps (class activation maps) if the vector is the linearly scaled region mean.

        A region's logit is the photo's logit with this region as the mean.
        """
        output = Output(self.linear(self.input(features)))
        if maps and self.options.vector == "region_mean" and self.options.scaling != "l2":
            output.maps["fused"] = region_map(self._score, features["regions"])
        return output

    def _score(self, rows: Tensor) -> Tensor:
        """Return logits (B, N, K) of region features (B, N, D), each in place of the mean."""
        if self.options.scaling == "standardize":
            rows = (rows - self.input.mean) / self.input.std
        logits: Tensor = self.linear(rows)
        return logits
