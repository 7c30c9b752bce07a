"""PositiveCoOp and NegativeCoOp: DualCoOp with one prompt; the other half of the pair is a free vector.

Rawlekar, Bhatnagar, Ahuja: Rethinking Prompting Strategies for Multi-Label Recognition with Partial Annotations, WACV
2025. They find that a prompt for absence, read by a text encoder, hurts.
"""

from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Method, Output, ParameterGroup
from intclip.methods.dualcoop.model import DualcoopOptions
from intclip.methods.free_prompts import FreeHalfPrompts, Half
from intclip.methods.region_pooling import RegionPooling


class PositiveCoopOptions(DualcoopOptions, frozen=True):
    """Options of PositiveCoOp: those of DualCoOp, and its own.

    Attributes:
        learned: The half that is a prompt: "positive" is PositiveCoOp, "negative" NegativeCoOp.
        std: Standard deviation of the free vectors at the start; 1 in the released code.
        prompt_lr: Multiplier of the learning rate for the contexts; the free vectors have 1.
    """

    learned: Half = "positive"
    std: float = Field(default=1.0, gt=0)
    prompt_lr: float = Field(default=0.01, gt=0)


class PositiveCoOp(Method):
    """One prompt and one free vector a class against the frozen region features."""

    Options = PositiveCoopOptions
    needs = ("regions",)

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: PositiveCoopOptions) -> None:
        super().__init__(backbone, taxonomy)
        self.options = options
        self.loss_reduction = options.loss.over_photos
        self.prompts = FreeHalfPrompts(
            backbone.text,
            taxonomy.sentences(options.sentence_form),
            learned=options.learned,
            std=options.std,
            context_length=options.context_length,
            class_specific=options.class_specific,
            period=options.period,
        )
        self.pooling = RegionPooling(options.pooling, len(taxonomy))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Logits (B, K), and the "sight" map."""
        text, regions = self.prompts(self.backbone.text), features["regions"]
        output = Output(self.pooling(regions, text))
        if maps:
            self.pooling.show(output, "sight", regions, text)
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """The classification loss."""
        return {"classification": self.options.loss(output.logits, targets)}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups "prompts" and "free", none of them decayed."""
        context = self.prompts.context
        free = [parameter for parameter in self.learnable_parameters() if parameter is not context]
        return [
            ParameterGroup("prompts", [context], self.options.prompt_lr, weight_decay_multiplier=0),
            ParameterGroup("free", free, weight_decay_multiplier=0),
        ]
