"""The parts of FDIL: an MLP on frozen features, a rerank by sentences, and a teacher that reads descriptions.

A draft of 2026 (EvelynMuir/IntentRecognition) has the strongest Intentonomy figures. README.md in this folder has the
equations. Its class-wise thresholds are the recipe's `evaluate.threshold: per_class`.
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
    """Options of FDIL: those of the MLP probe, and its own.

    Attributes:
        rerank: Weight of the sentences' scores on a photo's best classes; 0 leaves the ranking.
        best: How many classes are reranked.
        forms: Sentence forms that score: the published ones are lexical, canonical and scenario sentences.
        distillation: Weight of the teacher's probabilities in the student's loss; 0 for no teacher. It needs
            photos with words.
    """

    rerank: float = Field(default=0.3, ge=0)
    best: int = Field(default=5, ge=1)
    forms: tuple[str, ...] = Field(default=("fine", "consolidated", "11-15"), min_length=1)
    distillation: float = Field(default=1.0, ge=0)


class Fdil(Classifier):
    """MLP student of photos, MLP teacher of their words; only the student is used for prediction."""

    Options = FdilOptions
    options: FdilOptions
    sentences: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: FdilOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.needs = tuple(dict.fromkeys((*vector_needs(options.vector), "pooled")))
        self.beside = ("text",) if options.distillation else ()
        self.input = ProbeInput(backbone.embed_dim, options.vector, options.scaling)
        self.student = _mlp(self.input.width, len(taxonomy), options)
        self.teacher = _mlp(backbone.text.embed_dim, len(taxonomy), options) if options.distillation else None
        texts = [encode_classes(backbone, taxonomy.sentences(form), ("{}",)) for form in options.forms]
        # Not stored: derived from backbone and sentences, which the bundle has.
        self.register_buffer("sentences", torch.stack(texts), persistent=False)

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Mean and deviation of the inputs."""
        self.input.fit(batches)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Logits (B, K); no maps. The extra "student" holds them without the rerank, "teacher" the teacher's.

        The teacher is used in training only, where photos come with words.
        """
        logits: Tensor = self.student(self.input(features))
        output = Output(logits, extras={"student": logits})
        if self.training and self.teacher is not None and "text" in features:
            output.extras["teacher"] = self.teacher(features["text"])
            # Of length √D where there are words, 0 if there are none.
            output.extras["has_words"] = features["text"].any(dim=1, keepdim=True)
        if self.options.rerank:
            unit = F.normalize(features["pooled"], dim=1)
            # One product of two tables: OpenVINO does not multiply a table with a stack of them.
            scores = (unit @ self.sentences.flatten(0, 1).T).view(-1, *self.sentences.shape[:2])
            output.logits = reranked(logits, scores, weight=self.options.rerank, best=self.options.best)
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Classification by the student, by the teacher, and the student against the teacher's probabilities."""
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
    """Logits (B, K) with the sentences' say on the best classes of each photo.

    s_c += weight · mean over forms of the z-score of cos(photo, sentence), z over the photo's classes, for the `best`
    classes of s.

    Args:
        logits: s, (B, K).
        scores: Cosines (B, F, K) with the sentences of F forms.
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
