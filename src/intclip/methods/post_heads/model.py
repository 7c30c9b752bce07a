"""Heads for few labels on frozen embeddings: one channel for photos, one for text, and their late fusion.

Each channel has its own calibration and thresholds, so a post with one channel is scored by
that channel. See README.md in this folder.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from intclip.backbones.base import Backbone, Features
from intclip.backbones.sentence_encoders import MINILM, Embed, sentence_encoder, text_backbone
from intclip.errors import RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import binary_cross_entropy_with_logits
from intclip.methods.base import Channel, Method, Options, Output, WordUnit
from intclip.methods.post_heads.heads import BOTH, FittedHeads, LateFusion, as_tensors, fit_heads
from intclip.methods.post_heads.inputs import Floats, Inputs, WordCounts, label_sentences, text_inputs

_TEXT, _ANCHORS = "text: ", "text anchors"
_TINY = 1e-12
"""Above 0, so that the root has a finite gradient at 0."""


class PostHeadsOptions(Options, frozen=True):
    """Options of the heads.

    Attributes:
        channels: "image", "text" or both.
        text_encoder: Text encoder: "minilm", "backbone" (its text tower), or the folder of a sentence-transformers
            model.
        terms: Fitted vocabulary by kind of terms ("words", "letters").
        head: Use this head instead of the best one by cross-validation.
        seed: Seed of the folds.
    """

    channels: tuple[Channel, ...] = Field(default=("image",), min_length=1)
    text_encoder: str = MINILM
    terms: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    head: str | None = None
    seed: int = 0


class PostHeads(Method):
    """Fitted in closed form or by solvers: `intclip fit` fits both channels, `prepare` only the photos'."""

    Options = PostHeadsOptions
    options: PostHeadsOptions

    image_labels: Tensor
    text_labels: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: PostHeadsOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.needs = ("deep",) if "image" in self.channels else ()
        text = ["text", "sentences", *options.terms]
        blocks: dict[str, list[str]] = {name: ["deep", "joint"] if name == "image" else text for name in self.channels}
        self.heads = LateFusion(blocks, len(taxonomy))
        if "image" in self.channels:
            self.register_buffer("image_labels", torch.zeros(len(taxonomy), backbone.embed_dim))
        if "text" in self.channels:
            self.register_buffer("text_labels", torch.zeros(1, len(taxonomy), 0))
            for kind, terms in options.terms.items():
                self.register_buffer(f"idf_{kind}", torch.zeros(len(terms)))

    @property
    def channels(self) -> tuple[Channel, ...]:
        """Return the channels of the model."""
        return tuple(sorted(self.options.channels))

    @property
    def alone(self) -> tuple[Channel, ...]:
        """Return all channels: each one suffices."""
        return self.channels

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K) from the channels in the features, and "fused" maps of photos.

        With both channels, the extras have the logits of each.
        """
        inputs: dict[str, tuple[Mapping[str, Tensor], Tensor]] = {}
        if "deep" in features:
            inputs["image"] = self._photos(features["deep"])
        if _ANCHORS in features:
            blocks = {key.removeprefix(_TEXT): block for key, block in features.items() if key.startswith(_TEXT)}
            inputs["text"] = blocks, features[_ANCHORS]
        logits: dict[str, Tensor] = self.heads(inputs)
        output = Output(logits.pop(BOTH) if BOTH in logits else next(iter(logits.values())))
        if len(inputs) > 1:
            output.extras |= logits
        if maps and "image" in inputs and features["deep"].ndim == 4:
            output.maps["fused"] = self._falls(features["deep"], logits["image"])
        return output

    def read_texts(self, texts: Sequence[str | None]) -> Features:
        """Return blocks and anchors of texts, for `forward`; every post has a text."""
        blocks, anchors = as_tensors(self.text_inputs([text or "" for text in texts]), self._counts)
        return {f"{_TEXT}{name}": block for name, block in blocks.items()} | {_ANCHORS: anchors}

    @property
    def word_unit(self) -> WordUnit | None:
        """Return "log-odds" (calibrated), if the model uses text."""
        return "log-odds" if "text" in self.channels else None

    @torch.no_grad()
    def word_scores(self, texts: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return log-odds (T, K) of every label from text alone."""
        logits = self(self.read_texts(texts)).logits / self.temperature
        return self._log_odds(logits.double()).numpy()

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the binary cross-entropy, only for logging."""
        return {"classification": binary_cross_entropy_with_logits(output.logits, targets, reduction="mean")}

    @torch.no_grad()
    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Fit the photos' channel; unknown targets count as negative.

        Raises:
            RecipeError: The options include text, which training does not support.
        """
        if "text" in self.channels:
            raise RecipeError("the training loop does not support text; train with: intclip fit")
        self.encode_labels()
        read = [(self.photo_inputs(features["deep"]), targets) for features, targets in batches]
        targets = (torch.cat([pair[1] for pair in read]).nan_to_num() >= 0.5).cpu().numpy()
        inputs = {"image": join_inputs([pair[0] for pair in read])}
        fitted = fit_heads(inputs, targets, self.taxonomy, seed=self.options.seed, head=self.options.head)
        self.heads = fitted.module.to(self.image_labels.device)

    def encode_labels(self) -> None:
        """Embed the labels' sentences, for comparison with posts, in the joint space and by the text encoder."""
        sentences, device = label_sentences(self.taxonomy), next(self.backbone.parameters()).device
        if "image" in self.channels:
            forms = torch.stack([self.backbone.embed_texts(form, long="average") for form in sentences])
            self.image_labels = forms.mean(dim=0)
        if "text" in self.channels:
            self.text_labels = torch.from_numpy(np.stack([self._embed(form) for form in sentences])).to(device)

    def text_inputs(self, texts: Sequence[str]) -> Inputs:
        """Return the text channel of posts, before counting terms."""
        return text_inputs(texts, self._embed, self.text_labels.cpu().numpy())

    @torch.no_grad()
    def photo_inputs(self, deep: Tensor) -> Inputs:
        """Return the image channel of posts from the backbone's feature "deep"."""
        blocks, anchors = self._photos(deep)
        return Inputs({name: block.cpu().numpy() for name, block in blocks.items()}, anchors.cpu().numpy())

    def with_fitted(self, fitted: FittedHeads) -> "PostHeads":
        """Return the method with fitted heads and vocabularies; its options contain the terms."""
        options = self.options.model_copy(update={"terms": {k: tuple(t) for k, t in fitted.counts.terms.items()}})
        method = PostHeads(self.backbone, self.taxonomy, options)
        method.heads = fitted.module
        for name in ("image_labels", "text_labels"):
            if hasattr(self, name):
                setattr(method, name, getattr(self, name))
        for kind, idf in fitted.counts.idf.items():
            setattr(method, f"idf_{kind}", torch.from_numpy(idf))
        return method.eval()

    def resize_to(self, state: dict[str, Tensor]) -> None:
        """Resize to a fitted state."""
        for key, tensor in state.items():
            place, _, name = key.rpartition(".")
            owner = self.get_submodule(place) if not place or place in dict(self.named_modules()) else None
            if owner is not None and name in dict(owner.named_buffers(recurse=False)):
                setattr(owner, name, torch.zeros_like(tensor))

    def _photos(self, deep: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Return blocks and anchors of the last feature map: its mean, and the embedding in the joint space."""
        mean = self.backbone.deep_map(deep).mean(dim=(2, 3))
        joint = F.normalize(self.backbone.head.pooled(deep), dim=1)
        # The root preserves weak evidence next to strong evidence.
        return {"deep": mean.sign() * mean.abs().clamp_min(_TINY).sqrt(), "joint": joint}, joint @ self.image_labels.T

    def _falls(self, deep: Tensor, logits: Tensor) -> Tensor:
        """Return the drop of log-odds (B, K, h, w) without each region: occlusion of the last feature map.

        An occluded region is replaced by the mean of the others, so that the mean over the map is theirs.
        """
        channels, height, width = deep.shape[1:]
        count = height * width
        flat = deep.flatten(2)
        others = (flat.sum(dim=2, keepdim=True) - flat) / max(count - 1, 1)
        only = torch.eye(count, dtype=deep.dtype, device=deep.device)[:, None]
        without = flat[:, None] * (1 - only) + others.transpose(1, 2)[..., None] * only
        found = self.heads({"image": self._photos(without.reshape(-1, channels, height, width))})["image"]
        odds = self._log_odds(found).reshape(-1, count, found.shape[1])
        return (self._log_odds(logits)[:, None] - odds).transpose(1, 2).reshape(-1, found.shape[1], height, width)

    def _log_odds(self, logits: Tensor) -> Tensor:
        """Return log-odds of every label, for sigmoid or softmax logits."""
        if not self.taxonomy.exclusive:
            return logits
        itself = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        return logits - logits[:, None].masked_fill(itself, -torch.inf).logsumexp(dim=2)

    @cached_property
    def text_backbone(self) -> Backbone:
        """Return `lite` for MiniLM beside another backbone."""
        return text_backbone(self.options.text_encoder, self.backbone)

    @cached_property
    def _embed(self) -> Embed:
        return sentence_encoder(self.options.text_encoder, self.text_backbone)

    @property
    def _counts(self) -> WordCounts:
        idf: dict[str, Floats] = {kind: self.get_buffer(f"idf_{kind}").cpu().numpy() for kind in self.options.terms}
        return WordCounts(self.options.terms, idf)


def join_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Concatenate the inputs of batches of photos."""
    blocks = {name: np.concatenate([part.blocks[name] for part in parts]) for name in parts[0].blocks}
    return Inputs(blocks, np.concatenate([part.anchors for part in parts]))
