"""SPARC: zero-shot scores normalised over photos and prompts, and fused with prompts of two labels.

Miller, Gangrade, Mishra, Saenko, Saligrama: SPARC: Score Prompting and Adaptive Fusion for Zero-Shot Multi-Label
Recognition in Vision-Language Models, CVPR 2025. README.md in this folder has the equations. It trains nothing and
uses no labels: the training photos only provide means, deviations and directions, which are stored in the bundle.
"""

from collections.abc import Iterable
from itertools import combinations

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.labels.templates import TEMPLATES
from intclip.losses import binary_cross_entropy_with_logits
from intclip.methods.base import Method, Options, Output, at_least_float32
from intclip.methods.region_maps import region_map
from intclip.methods.sentence_scoring import encode_classes

_SMALLEST = 1e-6


class SparcOptions(Options, frozen=True):
    """Options of SPARC.

    Attributes:
        sentence_form: Form of the class text in single prompts.
        templates: Name of a set of `zero_shot`'s templates, over which single prompts are averaged.
        compound: Template of a prompt with two labels. The published prompts are written by a language model.
        partners: Maximum number of partners of a label: those with the most similar text.
        mix: Weight of the fused score; the single score has the rest.
        gain: Logit per standard deviation.
        offset: Standard deviations above the mean at which the probability is one half.
    """

    sentence_form: str = "fine"
    templates: str = "ensemble"
    compound: str = "{} and {}"
    partners: int = Field(default=12, ge=0)
    mix: float = Field(default=0.5, ge=0, le=1)
    gain: float = Field(default=2, gt=0)
    offset: float = 1.5

    @field_validator("templates")
    @classmethod
    def _known(cls, templates: str) -> str:
        if templates not in TEMPLATES:
            raise ValueError(f"unknown template set {templates!r}; known: {', '.join(TEMPLATES)}")
        return templates

    @field_validator("compound")
    @classmethod
    def _two_places(cls, compound: str) -> str:
        if compound.count("{}") != 2:
            raise ValueError("the template of two labels must hold {} twice")
        return compound


class Sparc(Method):
    """Single and compound prompts, calibrated and fused.

    Attributes:
        means: Mean of every prompt's score over the reference photos (K + M,), single prompts first.
        deviations: Standard deviations of these scores.
        directions: Weights (K, P + 1) of a label's sorted compound scores and, last, its single score; absolute values
            sum to 1.
    """

    Options = SparcOptions
    options: SparcOptions
    needs = ("pooled", "regions")
    single: Tensor
    names: Tensor
    compound: Tensor
    members: Tensor
    means: Tensor
    deviations: Tensor
    directions: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: SparcOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        words = taxonomy.sentences(options.sentence_form)
        single = encode_classes(backbone, words, TEMPLATES[options.templates])
        names = encode_classes(backbone, words, ("{}",))
        members, pairs = _pairs(names, options.partners)
        texts = [options.compound.replace("{}", words[a], 1).replace("{}", words[b], 1) for a, b in pairs]
        compound = encode_classes(backbone, texts, ("{}",)) if texts else names[:0]
        # Not stored: derived from backbone, sentences and options, which are in the bundle.
        for name, value in (("single", single), ("names", names), ("compound", compound), ("members", members)):
            self.register_buffer(name, value.to(single.device), persistent=False)
        prompts, classes, partners = len(single) + len(compound), len(single), members.shape[1]
        self.register_buffer("means", torch.zeros(prompts, device=single.device))
        self.register_buffer("deviations", torch.ones(prompts, device=single.device))
        even = torch.full((classes, partners + 1), 1 / (partners + 1), device=single.device)
        self.register_buffer("directions", even)

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute means, deviations and directions over the photos, without labels."""
        rows = torch.cat([self._within_photo(features["pooled"]) for features, _ in batches]).double()
        self.means.copy_(rows.mean(dim=0))
        self.deviations.copy_(rows.std(dim=0).clamp_min(_SMALLEST) if len(rows) > 1 else torch.ones_like(rows[0]))
        sorted_scores = self._witnesses(self._calibrated(rows.float()))
        if len(rows) > 1:
            self.directions.copy_(principal_directions(sorted_scores))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); "sight" maps are the logits of single regions."""
        output = Output(self._logits(features["pooled"]))
        if maps and "regions" in features:
            output.maps["sight"] = region_map(self._logits, features["regions"])
        return output

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the binary cross-entropy, only for logging."""
        return {"classification": binary_cross_entropy_with_logits(output.logits, targets, reduction="mean")}

    def _logits(self, embeddings: Tensor) -> Tensor:
        """Return logits (…, K) of embeddings (…, D)."""
        witnesses = self._witnesses(self._calibrated(self._within_photo(embeddings)))
        fused = (witnesses * self.directions).sum(dim=-1)
        score = self.options.mix * fused + (1 - self.options.mix) * witnesses[..., -1]
        return self.options.gain * (score - self.options.offset)

    def _within_photo(self, embeddings: Tensor) -> Tensor:
        """Return scores (…, K + M) standardised over one photo's classes; compound scores as those of plain names."""
        with torch.autocast(embeddings.device.type, enabled=False):  # small differences of cosines
            unit = F.normalize(at_least_float32(embeddings), dim=-1)
            single, names, compound = (unit @ text.T for text in (self.single, self.names, self.compound))
        parts = [_standard(single, single), _standard(compound, names)]
        return torch.cat(parts, dim=-1)

    def _calibrated(self, scores: Tensor) -> Tensor:
        """Standardise scores (…, K + M) by each prompt's mean and deviation over the reference photos."""
        return (scores - self.means) / self.deviations

    def _witnesses(self, scores: Tensor) -> Tensor:
        """Return the scores of each label, (…, K, P + 1): its sorted compound scores, and its single score."""
        classes = self.single.shape[0]
        single, compound = scores[..., :classes].unsqueeze(-1), scores[..., classes:]
        if not self.members.shape[1]:
            return single
        found = compound.index_select(-1, self.members.flatten()).view(*compound.shape[:-1], *self.members.shape)
        return torch.cat([found.sort(dim=-1).values, single], dim=-1)


def principal_directions(scores: Tensor) -> Tensor:
    """Return the first principal component (K, P) of each label's scores (N, K, P), mean > 0, absolute sum 1."""
    centred = (scores - scores.mean(dim=0)).double().transpose(0, 1)
    covariance = centred.transpose(1, 2) @ centred
    direction = torch.linalg.eigh(covariance).eigenvectors[..., -1]
    direction = torch.where(direction.mean(dim=1, keepdim=True) < 0, -direction, direction)
    return (direction / direction.abs().sum(dim=1, keepdim=True)).to(scores.dtype)


def _standard(scores: Tensor, by: Tensor) -> Tensor:
    """Standardise scores (…, M) by the mean and deviation of scores (…, K); 0 for a single class."""
    spread = by.std(dim=-1, keepdim=True) if by.shape[-1] > 1 else torch.ones_like(by)
    return (scores - by.mean(dim=-1, keepdim=True)) / spread.clamp_min(_SMALLEST)


def _pairs(names: Tensor, partners: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """Return pairs of labels, and the indices (K, P) of each label's pairs.

    Args:
        names: Unit text features (K, D).
        partners: Maximum P; a label's partners are the most similar labels.
    """
    classes = len(names)
    count = min(partners, classes - 1)
    likeness = (names @ names.T).fill_diagonal_(-torch.inf)
    nearest = likeness.topk(count, dim=1).indices.cpu() if count else torch.empty(classes, 0, dtype=torch.long)
    wanted = {tuple(sorted((label, other))) for label, row in enumerate(nearest.tolist()) for other in row}
    pairs = [pair for pair in combinations(range(classes), 2) if pair in wanted]
    place = {pair: number for number, pair in enumerate(pairs)}
    rows = [[place[min(a, b), max(a, b)] for b in row] for a, row in enumerate(nearest.tolist())]
    return torch.tensor(rows, dtype=torch.long).view(classes, count), pairs
