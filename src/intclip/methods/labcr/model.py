"""LabCR: Query2Label on two views, which must agree on the labels and on relations between photos.

Shi, Ye, Huang, Ruan, Du: Label-Aware Calibration and Relation-Preserving in Visual Intention Understanding, IEEE TIP
(2024), by its released code. README.md in this folder has the equations.
"""

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.labcr.consistency import divided_consistency, relation_consistency, united_consistency
from intclip.methods.query2label.model import Query2Label, Query2labelOptions
from intclip.methods.query_decoder import DecoderOptions


class LabcrOptions(Query2labelOptions, frozen=True):
    """Options of LabCR: Query2Label's, and the consistency losses.

    Attributes:
        decoder: Query2Label's, with dropout 0.3.
        distribution: Weight of the consistency of label distributions (DUDC); 1 in the released code.
        united: α, the weight of the united part; the divided part has 1 − α.
        divided_gradient: The divided part has a gradient. In the released code it is rebuilt from plain numbers,
            without a gradient; False leaves it out, since it would not train anything.
        relation: Weight of the consistency of relations between photos (IRP); 1 in the released code.
        temperature: τ of the relations.
    """

    decoder: DecoderOptions = DecoderOptions(dropout=0.3)
    distribution: float = Field(default=1.0, ge=0)
    united: float = Field(default=0.4, ge=0, le=1)
    divided_gradient: bool = True
    relation: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.4, gt=0)


class LabCR(Query2Label):
    """LabCR for any backbone; at inference it is Query2Label."""

    Options = LabcrOptions
    views = 2
    options: LabcrOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: LabcrOptions) -> None:
        super().__init__(backbone, taxonomy, options)

    def training_loss(self, views: Sequence[Features], targets: Tensor) -> dict[str, Tensor]:
        """Return the classification losses of both views, and the consistency losses."""
        options = self.options
        first, second = (self(view) for view in views)
        losses = [self.loss(output, targets)["classification"] for output in (first, second)]
        terms = {"classification": losses[0] + losses[1]}
        consistency: dict[str, Tensor] = {}
        if options.distribution and options.united:
            united = united_consistency(first.logits, second.logits)
            consistency["united"] = options.distribution * options.united * united
        if options.distribution and options.united < 1 and options.divided_gradient:
            divided = divided_consistency(first.logits, second.logits, targets)
            consistency["divided"] = options.distribution * (1 - options.united) * divided
        if options.relation:
            states = (first.extras["states"].flatten(1), second.extras["states"].flatten(1))
            consistency["relation"] = options.relation * relation_consistency(*states, options.temperature)
        return terms | {name: self.weighed(term, targets.shape[0]) for name, term in consistency.items()}
