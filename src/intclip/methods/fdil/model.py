"""The parts of FDIL: an MLP on frozen features, reranking by sentences, and distillation from descriptions.

FDIL is a draft of 2026 (EvelynMuir/IntentRecognition) with the best Intentonomy figures. README.md in this folder has
the equations. Its class-wise thresholds are the recipe's `evaluate.threshold: per_class`.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import binary_cross_entropy_with_logits
from intclip.methods.base import Classifier, Output
from intclip.methods.mlp_probe.model import MlpProbeOptions
from intclip.methods.probe_inputs import ProbeInput, vector_needs
from intclip.methods.sentence_scoring import encode_classes

_SMALLEST = 1e-6


class FdilOptions(MlpProbeOptions, frozen=True):
    """Options of FDIL: the MLP probe's, and its own.

    Attributes:
        rerank: Weight of the sentences' scores for a photo's best classes; 0 disables reranking.
        best: Number of classes to rerank.
        forms: Sentence forms used for reranking; the published ones are lexical, canonical and scenario sentences.
        distillation: Weight of the teacher's probabilities in the student's loss; 0 for no teacher. Requires photos
            with text.
    """

    rerank: float = Field(default=0.3, ge=0)
    best: int = Field(default=5, ge=1)
    forms: tuple[str, ...] = Field(default=("fine", "consolidated", "11-15"), min_length=1)
    distillation: float = Field(default=1.0, ge=0)


class Fdil(Classifier):
    """An MLP student on photos and an MLP teacher on their text; only the student is used for prediction."""

    Options = FdilOptions
    options: FdilOptions
    sentences: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: FdilOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.needs = tuple(dict.fromkeys((*vector_needs(options.vector), "pooled")))
        self.extra_inputs = ("text",) if options.distillation else ()
        self.input = ProbeInput(backbone.embed_dim, options.vector, options.scaling)
        self.student = _mlp(self.input.width, len(taxonomy), options)
        self.teacher = _mlp(backbone.text.embed_dim, len(taxonomy), options) if options.distillation else None
        texts = [encode_classes(backbone, taxonomy.sentences(form), ("{}",)) for form in options.forms]
        # Not stored: derived from backbone and sentences, which are in the bundle.
        self.register_buffer("sentences", torch.stack(texts), persistent=False)

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute mean and deviation of the inputs."""
        self.input.fit(batches)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K), without maps; extras are "student" (before reranking) and "teacher".

        The teacher is used only in training, for photos with text.
        """
        logits: Tensor = self.student(self.input(features))
        output = Output(logits, extras={"student": logits})
        if self.training and self.teacher is not None and "text" in features:
            output.extras["teacher"] = self.teacher(features["text"])
            # Norm √D for photos with text, 0 without.
            output.extras["has_words"] = features["text"].any(dim=1, keepdim=True)
        if self.options.rerank:
            unit = F.normalize(features["pooled"], dim=1)
            # One product of two matrices: OpenVINO does not multiply a matrix with a stack of matrices.
            scores = (unit @ self.sentences.flatten(0, 1).T).view(-1, *self.sentences.shape[:2])
            output.logits = reranked(logits, scores, weight=self.options.rerank, best=self.options.best)
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the classification losses of student and teacher, and the distillation loss."""
        student = output.extras["student"]
        terms = {"classification": self.options.loss(student, targets)}
        if "teacher" not in output.extras:
            return terms
        known = output.extras["has_words"]
        teacher = output.extras["teacher"]
        terms["teacher"] = self.options.loss(teacher, targets.masked_fill(~known, torch.nan))
        taught = teacher.detach().sigmoid().masked_fill(~known, torch.nan)
        distilled = binary_cross_entropy_with_logits(student, taught, reduction=self.options.loss.reduction)
        terms["distillation"] = self.options.loss.scale * self.options.distillation * distilled
        return terms


def reranked(logits: Tensor, scores: Tensor, *, weight: float, best: int) -> Tensor:
    """Return logits (B, K), reranked by sentences among each photo's best classes.

    s_c += weight · mean over forms of the z-score of cos(photo, sentence), z over the photo's classes, for the `best`
    classes of s.

    Args:
        logits: s, (B, K).
        scores: Cosines (B, F, K) with sentences in F forms.
        weight: See above.
        best: See above.
    """
    classes = logits.shape[1]
    if classes < 2:
        return logits
    spread = scores.std(dim=2, keepdim=True, correction=0).clamp_min(_SMALLEST)
    z = ((scores - scores.mean(dim=2, keepdim=True)) / spread).mean(dim=1)
    least = logits.topk(min(best, classes), dim=1).values[:, -1:]
    return logits + weight * torch.where(logits >= least, z, 0.0)


def _mlp(width: int, classes: int, options: FdilOptions) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, options.hidden), nn.GELU(), nn.Dropout(options.dropout), nn.Linear(options.hidden, classes)
    )
