"""Multi-label Tip-Adapter: a cache of training photos, blended with zero-shot classification.

Zhang et al.: Tip-Adapter, ECCV 2022. README.md in this folder has the equations and the changes for multi-label
tasks.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.errors import DatasetError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output
from intclip.methods.loss_options import LossOptions
from intclip.methods.region_maps import region_map
from intclip.methods.zero_shot.model import ZeroShot, ZeroShotOptions

_UNKNOWN = -1.0
_SAME = 1e-4
"""1 − cosine below which a cached photo is the input photo itself; differences of float16 features are smaller."""
_EDGE = 1e-6
"""Minimum distance of shares from 0 and 1 for their log-odds."""


class CacheOptions(BaseModel, frozen=True, extra="forbid"):
    """Options of the cache.

    Attributes:
        alpha: α: 0 is zero-shot classification, 1 weights both equally, infinity would be only the cache.
        beta: β: decay of a cached photo's weight with its distance 1 − cos.
        shots: Maximum photos per label; null keeps all.
        smoothing: Weight of the labels' frequencies relative to all cached photos together, so that no probability is 0
            or 1.
    """

    alpha: float = Field(default=1, ge=0)
    beta: float = Field(default=30, gt=0)
    shots: int | None = Field(default=None, ge=1)
    smoothing: float = Field(default=0.05, gt=0)


class TipAdapterOptions(ClassifierOptions, frozen=True):
    """Options of Tip-Adapter.

    Attributes:
        fine_tune: Train the cached features (Tip-Adapter-F); otherwise nothing is trained.
        cache: Options of the cache.
        zero_shot: Options of the zero-shot classifier.
        loss: The classification loss.
    """

    fine_tune: bool = False
    cache: CacheOptions = CacheOptions()
    zero_shot: ZeroShotOptions = ZeroShotOptions()
    loss: LossOptions = LossOptions(kind="bce", reduction="batch")


class TipAdapter(Classifier):
    """A cache of training photos on top of a zero-shot classifier.

    Attributes:
        keys: Unit embeddings (N, D) of the cached photos; training may change their norm.
        values: Their targets (N, K); −1 if unknown.
        frequency: Mean target of each label (K,).
    """

    Options = TipAdapterOptions
    options: TipAdapterOptions
    needs = ("pooled", "regions")
    values: Tensor
    frequency: Tensor
    first_keys: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: TipAdapterOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.zero_shot = ZeroShot(backbone, taxonomy, options.zero_shot)
        self.keys = nn.Parameter(self._empty(backbone.embed_dim), requires_grad=options.fine_tune)
        self.register_buffer("values", self._empty(len(taxonomy)))
        self.register_buffer("frequency", torch.full((len(taxonomy),), 0.5, device=self.keys.device))
        # Not stored: only training needs to identify the input photo, after a new `prepare`.
        self.register_buffer("first_keys", self._empty(backbone.embed_dim), persistent=False)

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Fill the cache with the training split, or with its first photos up to `shots` per label.

        Raises:
            DatasetError: No photo remains.
        """
        keys: list[Tensor] = []
        values: list[Tensor] = []
        total = torch.full_like(self.frequency, 0.5, dtype=torch.float64)
        count = torch.ones_like(total)
        taken = torch.zeros_like(total)
        for features, targets in batches:
            known = ~targets.isnan()
            total += torch.where(known, targets, 0).sum(dim=0)
            count += known.sum(dim=0)
            rows = self._rows(targets, taken)
            keys.append(F.normalize(features["pooled"][rows].float(), dim=1))
            values.append(targets[rows].nan_to_num(_UNKNOWN).float())
        if not sum(map(len, keys)):
            raise DatasetError("Tip-Adapter needs training photos with a label; there are none")
        self._resize(torch.cat(keys).to(self.keys.device), torch.cat(values).to(self.keys.device))
        self.first_keys = self.keys.detach().clone() if self.options.fine_tune else self.first_keys
        self.frequency.copy_(total / count)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); "sight" maps are the logits of single regions."""
        zero_shot = self.zero_shot(features, maps=maps)
        output = Output(self._blend(zero_shot.logits, self.cache_logits(features["pooled"])))
        if maps:
            cached = region_map(self.cache_logits, features["regions"])
            output.maps["sight"] = self._blend(zero_shot.maps["sight"], cached)
        return output

    def cache_logits(self, embeddings: Tensor) -> Tensor:
        """Return the cache's log-odds (…, K) for embeddings (…, D).

        In training a photo does not use its own cache entry, which would reveal its targets.
        """
        unit = F.normalize(embeddings, dim=-1).to(self.keys.dtype)
        closeness = self.options.cache.beta * (unit @ F.normalize(self.keys, dim=1).T)
        if self.training and len(self.first_keys):
            with torch.autocast(unit.device.type, enabled=False):  # half precision rounds 1 − _SAME to 1
                itself = unit @ self.first_keys.T > 1 - _SAME
            closeness = closeness.masked_fill(itself, float("-inf"))
        weights = closeness.softmax(dim=-1)
        weights = torch.where(weights.isnan(), 0.0, weights)  # every cached photo was itself
        known = (self.values != _UNKNOWN).to(weights.dtype)
        smoothing = self.options.cache.smoothing
        votes = weights @ (self.values * known) + smoothing * self.frequency
        share = (votes / (weights @ known + smoothing)).clamp(_EDGE, 1 - _EDGE)
        return share.log() - (1 - share).log()  # torch.logit, which converters do not support

    def own_state(self) -> dict[str, Tensor]:
        """Return only the cache: the zero-shot classifier has no state besides the shared backbone."""
        return {key: value for key, value in super().own_state().items() if not key.startswith("zero_shot.")}

    def resize_to(self, state: dict[str, Tensor]) -> None:
        """Resize the cache to the state's number of photos."""
        if "keys" in state and "values" in state and len(state["keys"]) != len(self.keys):
            count = len(state["keys"])
            self._resize(
                self.keys.new_empty(count, self.keys.shape[1]), self.values.new_empty(count, len(self.taxonomy))
            )

    def _blend(self, zero_shot: Tensor, cached: Tensor) -> Tensor:
        alpha = self.options.cache.alpha
        return (zero_shot + alpha * cached) / (1 + alpha)

    def _rows(self, targets: Tensor, taken: Tensor) -> Tensor:
        """Select photos of a batch to keep; updates `taken` (K,), the kept positives of each label."""
        shots = self.options.cache.shots
        if shots is None:
            return torch.arange(len(targets), device=targets.device)
        positives = targets.nan_to_num(0) >= 0.5
        rows = []
        for row, positive in enumerate(positives):
            if bool((positive & (taken < shots)).any()):
                taken += positive
                rows.append(row)
        return torch.tensor(rows, dtype=torch.long, device=targets.device)

    def _resize(self, keys: Tensor, values: Tensor) -> None:
        self.keys = nn.Parameter(keys, requires_grad=self.options.fine_tune)
        self.values = values

    def _empty(self, width: int) -> Tensor:
        return torch.empty(0, width, device=next(self.backbone.parameters()).device)
