"""PositiveCoOp and NegativeCoOp: DualCoOp with one prompt; the other half of the pair is a free vector.

Rawlekar, Bhatnagar, Ahuja: Rethinking Prompting Strategies for Multi-Label Recognition with Partial Annotations, WACV
2025. They find that a prompt for absence, read by a text encoder, hurts.
"""

from pydantic import Field

from intclip.methods.base import ParameterGroup
from intclip.methods.dualcoop.model import DualCoOp, DualcoopOptions
from intclip.methods.free_prompts import FreeHalfPrompts, Half


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


class PositiveCoOp(DualCoOp):
    """One prompt and one free vector a class against the frozen region features."""

    Options = PositiveCoopOptions
    options: PositiveCoopOptions

    def make_prompts(self) -> FreeHalfPrompts:
        """One prompt and one free vector a class."""
        options = self.options
        sentences = options.sentences(self.taxonomy)
        return FreeHalfPrompts(self.backbone.text, sentences, options, learned=options.learned, std=options.std)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Groups "prompts" and "free", none of them decayed."""
        context = self.prompts.context
        free = [parameter for parameter in self.learnable_parameters() if parameter is not context]
        return [
            ParameterGroup("prompts", [context], self.options.prompt_lr, weight_decay_multiplier=0),
            ParameterGroup("free", free, weight_decay_multiplier=0),
        ]
