"""DualCoOp: two learned prompts per class, compared with frozen region features; the image tower is not trained.

Sun, Hu, Saenko: DualCoOp, NeurIPS 2022. It is IntCLIP without a semantic branch, with class names instead of
sentences and the mean region as an additional region.
"""

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output
from intclip.methods.free_prompts import FreeHalfPrompts
from intclip.methods.loss_options import LossOptions
from intclip.methods.prompts import PromptLearner, PromptOptions
from intclip.methods.region_pooling import PoolingOptions, RegionPooling


class DualcoopOptions(PromptOptions, ClassifierOptions, frozen=True):
    """Options of DualCoOp; defaults as in its code, the loss scale as in its COCO example.

    Attributes:
        pooling: Pooling of region similarities to logits.
        loss: The classification loss.
    """

    pooling: PoolingOptions = PoolingOptions(mean_region=True)
    loss: LossOptions = LossOptions(scale=0.03)


class DualCoOp(Classifier):
    """Dual prompts and class-specific region pooling on frozen region features."""

    Options = DualcoopOptions
    options: DualcoopOptions
    needs = ("regions",)

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: DualcoopOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.prompts = self.make_prompts()
        self.pooling = RegionPooling(options.pooling, len(taxonomy.names))

    def make_prompts(self) -> PromptLearner | FreeHalfPrompts:
        """Make the prompt pairs; overridden in PositiveCoOp."""
        return PromptLearner(self.backbone.text, self.options.sentences(self.taxonomy), self.options)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K) and the "sight" map."""
        text, regions = self.prompts(self.backbone.text), features["regions"]
        output = Output(self.pooling(regions, text))
        if maps:
            self.pooling.show(output, "sight", regions, text)
        return output
