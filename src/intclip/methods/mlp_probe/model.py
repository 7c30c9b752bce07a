"""A two-layer MLP with asymmetric loss on [class token, patch mean], a strong published Intentonomy baseline."""

from collections.abc import Iterable

from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output
from intclip.methods.loss_options import LossOptions
from intclip.methods.probe_inputs import ProbeInput, Scaling, Vector, vector_needs


class MlpProbeOptions(ClassifierOptions, frozen=True):
    """Options of the MLP probe.

    Attributes:
        vector: Feature vector of a photo.
        scaling: Scaling of its coordinates.
        hidden: Width of the hidden layer.
        dropout: Dropout before the second layer.
        loss: The classification loss; γ₊ 0, γ₋ 2, margin 0.05 is the published setting.
    """

    vector: Vector = "pooled_and_region_mean"
    scaling: Scaling = "standardize"
    hidden: int = Field(default=512, gt=0)
    dropout: float = Field(default=0.5, ge=0, lt=1)
    loss: LossOptions = LossOptions(gamma_pos=0, reduction="batch")


class MLPProbe(Classifier):
    """Linear, GELU, dropout, linear."""

    Options = MlpProbeOptions
    options: MlpProbeOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: MlpProbeOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.needs = vector_needs(options.vector)
        self.input = ProbeInput(backbone.embed_dim, options.vector, options.scaling)
        self.layers = nn.Sequential(
            nn.Linear(self.input.width, options.hidden),
            nn.GELU(),
            nn.Dropout(options.dropout),
            nn.Linear(options.hidden, len(taxonomy.names)),
        )

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute mean and deviation of the inputs."""
        self.input.fit(batches)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K), without maps."""
        return Output(self.layers(self.input(features)))
