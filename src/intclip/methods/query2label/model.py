"""Query2Label: a transformer decoder with labels as queries, on a trainable feature map.

Liu, Zhang, Yang, Su, Zhu: Query2Label, arXiv 2107.10834; the released code where the two differ. README.md in this
folder has the equations.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.label_graph import label_embeddings
from intclip.methods.loss_options import LossOptions
from intclip.methods.query_decoder import DecoderOptions, GroupLinear, QueryDecoder
from intclip.methods.region_maps import attention_map
from intclip.methods.visual_map import MapOptions, VisualMap, deep_and_rest


class Query2labelOptions(ClassifierOptions, frozen=True):
    """Options of Query2Label; the defaults are the released code's.

    Attributes:
        visual: Feature map, and whether a copy of the deep layers is trained.
        queries: "learned" label embeddings, or "text": projected text embeddings of the sentences.
        sentence_form: Form of the sentences for "text".
        decoder: Size of the decoder.
        loss: The classification loss; γ₊ 0, γ₋ 2, no margin.
        deep_lr: Multiplier of the learning rate for the deep layers; 1 in the released code.
    """

    visual: MapOptions = MapOptions()
    queries: Literal["learned", "text"] = "learned"
    sentence_form: str = "11-15"
    decoder: DecoderOptions = DecoderOptions()
    loss: LossOptions = LossOptions(gamma_pos=0, gamma_neg=2, margin=0, reduction="batch")
    deep_lr: float = Field(default=1.0, gt=0)


class Query2Label(Classifier):
    """Query2Label for any backbone."""

    Options = Query2labelOptions
    options: Query2labelOptions
    label_text: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: Query2labelOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.visual = VisualMap(backbone, options.visual)
        self.needs = self.visual.needs
        self.decoder = QueryDecoder(self.visual.channels, options.decoder)
        classes, dim = len(taxonomy), self.decoder.dim
        self.queries: nn.Parameter | None = None
        self.project: nn.Linear | None = None
        if options.queries == "learned":
            self.queries = nn.Parameter(torch.randn(classes, dim))
        else:
            # Not stored: derived from the sentences, which are in the bundle.
            text = label_embeddings(backbone.text, taxonomy, options.sentence_form)
            self.register_buffer("label_text", text, persistent=False)
            self.project = nn.Linear(text.shape[1], dim)
        self.head = GroupLinear(classes, dim)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "fused" is each label's attention, positive where above uniform.

        The extra "states" (B, K, d) holds the label states.
        """
        queries = self.queries if self.project is None else self.project(self.label_text)
        states, attention = self.decoder(self.visual(self.backbone, features), queries, attention=maps)
        output = Output(self.head(states), extras={"states": states})
        if attention is not None:
            output.maps["fused"] = attention_map(attention)
        return output

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.visual.branch, self.options.deep_lr)
