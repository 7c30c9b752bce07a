"""Multi-label CoOp: learned context around each class's text, compared with the photo's embedding.

Zhou, Yang, Loy, Liu: Learning to Prompt for Vision-Language Models, IJCV 2022. It is for single-label tasks;
README.md in this folder describes the replacement of its softmax over classes.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup, at_least_float32
from intclip.methods.loss_options import LossOptions
from intclip.methods.prompts import NEGATIVE, POSITIVE, ClassTokenPosition, PromptLearner, PromptOptions
from intclip.methods.region_maps import region_map
from intclip.methods.sentence_scoring import ScoringOptions, SentenceScoring


class CoopOptions(ScoringOptions, PromptOptions, ClassifierOptions, frozen=True):
    """Options of CoOp, including the scale of a single prompt.

    Attributes:
        prompts: "single": one prompt per class, with the scale of zero-shot classification. "dual": a negative and a
            positive prompt, logit = scale · (cos⁺ − cos⁻); of the scale's options it uses only `scale`.
        context_words: Words that initialise the contexts; null for random ones.
        class_token_position: Position of the class text: "end", "middle" or "front"; see `ClassTokenPosition`.
        bias: Add a learned bias to each class's logit, initially 0.
        loss: The classification loss.
    """

    prompts: Literal["single", "dual"] = "single"
    context_words: str | None = None
    class_token_position: ClassTokenPosition = "end"
    class_specific: bool = False
    bias: bool = True
    loss: LossOptions = LossOptions(reduction="batch")


class CoOp(Classifier):
    """Compares learned prompts with the photo's embedding."""

    Options = CoopOptions
    options: CoopOptions
    needs = ("pooled", "regions")

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: CoopOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.prompts = PromptLearner(
            backbone.text,
            options.sentences(taxonomy),
            options,
            halves=1 if options.prompts == "single" else 2,
            class_token_position=options.class_token_position,
            words=options.context_words,
        )
        # A difference of two cosines needs no further reference.
        self.scoring = SentenceScoring(backbone, options) if options.prompts == "single" else None
        self.bias = nn.Parameter(torch.zeros(len(taxonomy))) if options.bias else None

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); "sight" maps are the logits of single regions."""
        text = self.text_features(features)
        output = Output(self._logits(features["pooled"].unsqueeze(1), text).squeeze(1))
        if maps:
            output.maps["sight"] = region_map(lambda rows: self._logits(rows, text), features["regions"])
        return output

    def text_features(self, features: Features) -> Tensor:
        """Return text features (halves, K, D), unnormalised; in CoCoOp per photo, (halves, B, K, D)."""
        text: Tensor = self.prompts(self.backbone.text)
        return text

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "prompts" and, without weight decay, "bias"."""
        rest = [parameter for parameter in self.learnable_parameters() if parameter is not self.bias]
        groups = [ParameterGroup("prompts", rest)]
        if self.bias is not None:
            groups.append(ParameterGroup("bias", [self.bias], weight_decay_multiplier=0))
        return groups

    def _logits(self, embeddings: Tensor, text: Tensor) -> Tensor:
        """Return logits (B, N, K) of N embeddings per photo (B, N, D)."""
        if self.scoring is not None:
            logits: Tensor = self.scoring(embeddings, text[0])
        else:
            with torch.autocast(text.device.type, enabled=False):  # the scale is too large for 8-bit cosines
                unit = nn.functional.normalize(at_least_float32(text), dim=-1)
                difference = (unit[POSITIVE] - unit[NEGATIVE]).transpose(-1, -2)
                logits = self.options.scale * (
                    nn.functional.normalize(at_least_float32(embeddings), dim=-1) @ difference
                )
        return logits if self.bias is None else logits + self.bias
