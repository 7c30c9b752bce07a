"""DualCoOp: two learned prompts a class against the frozen region features; nothing of the image tower trains.

Sun, Hu, Saenko: DualCoOp, NeurIPS 2022. It is IntCLIP without a semantic branch, with class names for sentences and
the mean region as one more region.
"""

from pydantic import Field

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output
from intclip.methods.free_prompts import FreeHalfPrompts
from intclip.methods.loss_options import LossOptions
from intclip.methods.prompts import PromptLearner
from intclip.methods.region_pooling import PoolingOptions, RegionPooling


class DualcoopOptions(ClassifierOptions, frozen=True):
    """Options of DualCoOp; the defaults are its code's, the loss scale that of its COCO example.

    Attributes:
        context_length: Number of context vectors a prompt.
        class_specific: Contexts of each class its own.
        sentence_form: Which of the taxonomy's sentences follow the context.
        period: End each sentence with a period where it has no closing punctuation, as the released code does.
        pooling: From region similarities to logits.
        loss: The classification loss.
    """

    context_length: int = Field(default=16, ge=0)
    class_specific: bool = True
    sentence_form: str = "fine"
    period: bool = True
    pooling: PoolingOptions = PoolingOptions(mean_region=True)
    loss: LossOptions = LossOptions(scale=0.03)


class DualCoOp(Classifier):
    """Dual prompts and class-specific region pooling on the frozen region features."""

    Options = DualcoopOptions
    options: DualcoopOptions
    needs = ("regions",)

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: DualcoopOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.prompts = self.make_prompts()
        self.pooling = RegionPooling(options.pooling, len(taxonomy.names))

    def make_prompts(self) -> PromptLearner | FreeHalfPrompts:
        """The pairs of prompts; PositiveCoOp has others."""
        options = self.options
        return PromptLearner(
            self.backbone.text,
            self.taxonomy.sentences(options.sentence_form),
            context_length=options.context_length,
            class_specific=options.class_specific,
            period=options.period,
        )

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Logits (B, K), and the "sight" map."""
        text, regions = self.prompts(self.backbone.text), features["regions"]
        output = Output(self.pooling(regions, text))
        if maps:
            self.pooling.show(output, "sight", regions, text)
        return output
