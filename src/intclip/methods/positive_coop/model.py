"""PositiveCoOp and NegativeCoOp: DualCoOp with one prompt; the other half of the pair is a free vector.

Rawlekar, Bhatnagar, Ahuja: Rethinking Prompting Strategies for Multi-Label Recognition with Partial Annotations, WACV
2025. They find that an encoded prompt for absence hurts.
"""

from pydantic import Field

from intclip.methods.base import ParameterGroup
from intclip.methods.dualcoop.model import DualCoOp, DualcoopOptions
from intclip.methods.free_prompts import FreeHalfPrompts, Half


class PositiveCoopOptions(DualcoopOptions, frozen=True):
    """Options of PositiveCoOp: DualCoOp's, and its own.

    Attributes:
        learned: The half that is a prompt: "positive" is PositiveCoOp, "negative" NegativeCoOp.
        std: Initial standard deviation of the free vectors; 1 in the released code.
        prompt_lr: Multiplier of the learning rate for the contexts; that of the free vectors is 1.
    """

    learned: Half = "positive"
    std: float = Field(default=1.0, gt=0)
    prompt_lr: float = Field(default=0.01, gt=0)


class PositiveCoOp(DualCoOp):
    """Compares one prompt and one free vector per class with frozen region features."""

    Options = PositiveCoopOptions
    options: PositiveCoopOptions

    def make_prompts(self) -> FreeHalfPrompts:
        """Make one prompt and one free vector per class."""
        options = self.options
        sentences = options.sentences(self.taxonomy)
        return FreeHalfPrompts(self.backbone.text, sentences, options, learned=options.learned, std=options.std)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "prompts" and "free", both without weight decay."""
        context = self.prompts.context
        free = [parameter for parameter in self.learnable_parameters() if parameter is not context]
        return [
            ParameterGroup("prompts", [context], self.options.prompt_lr, weight_decay_multiplier=0),
            ParameterGroup("free", free, weight_decay_multiplier=0),
        ]
