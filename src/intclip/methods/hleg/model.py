"""HLEG: one decoder layer per level of the taxonomy; each level queries with the mean of its children's states.

Shi, Ye, Zhang, Du: Learnable Hierarchical Label Embedding and Grouping for Visual Intention Understanding, IEEE TAC
(2023), by its released code. README.md in this folder has the equations.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.label_graph import label_embeddings
from intclip.methods.label_levels import coarser_targets, level_steps
from intclip.methods.loss_options import LossOptions
from intclip.methods.query_decoder import DecoderOptions, GroupLinear, QueryDecoder
from intclip.methods.region_maps import attention_map
from intclip.methods.visual_map import MapOptions, VisualMap, deep_and_rest


class HlegOptions(ClassifierOptions, frozen=True):
    """Options of HLEG; the defaults are the released code's.

    Attributes:
        visual: Feature map, and whether a copy of the deep layers is trained.
        queries: Queries of the finest level: "learned" label embeddings, or "text", projected embeddings of the
            sentences, our interpretation of HLEG + HCI (IntCLIP paper, Table 6b).
        sentence_form: Form of the sentences for "text".
        decoder: Size of the decoder. `decoder_layers` is ignored: every level of the taxonomy has one layer.
        loss: Loss of every level; γ₊ 0, γ₋ 2, no margin. Its reduction is "batch" or "sum".
        levels: Combination of the levels' losses per photo: "max" or "sum".
        fine: Weight of the finest level's additional loss.
        deep_lr: Multiplier of the learning rate for the deep layers; 1 in the released code.
    """

    visual: MapOptions = MapOptions()
    queries: Literal["learned", "text"] = "learned"
    sentence_form: str = "11-15"
    decoder: DecoderOptions = DecoderOptions()
    loss: LossOptions = LossOptions(gamma_pos=0, gamma_neg=2, margin=0, reduction="batch")
    levels: Literal["max", "sum"] = "max"
    fine: float = Field(default=0.1, ge=0)
    deep_lr: float = Field(default=1.0, gt=0)


class HLEG(Classifier):
    """HLEG for any backbone and taxonomy; with one level it is Query2Label with non-zero initial states."""

    Options = HlegOptions
    options: HlegOptions
    label_text: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: HlegOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.visual = VisualMap(backbone, options.visual)
        self.needs = self.visual.needs
        sizes = [len(names) for names in taxonomy.levels.values()]
        for level, step in enumerate(level_steps(taxonomy)):
            # Not stored: derived from the taxonomy, which is in the bundle.
            self.register_buffer(f"step{level}", step, persistent=False)
        size = options.decoder.model_copy(update={"decoder_layers": len(sizes)})
        self.decoder = QueryDecoder(self.visual.channels, size)
        height, width = self.visual.grid(backbone)
        self.starts = nn.ModuleList(nn.Linear(height * width, count) for count in sizes)
        self.queries: nn.Parameter | None = None
        self.project: nn.Linear | None = None
        if options.queries == "learned":
            self.queries = nn.Parameter(torch.randn(sizes[0], self.decoder.dim))
        else:
            text = label_embeddings(backbone.text, taxonomy, options.sentence_form)
            self.register_buffer("label_text", text, persistent=False)  # derived from the sentences, like the steps
            self.project = nn.Linear(text.shape[1], self.decoder.dim)
        self.heads = nn.ModuleList(GroupLinear(count, self.decoder.dim) for count in sizes)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "fused" is each label's attention, positive where above uniform.

        Extras are the coarser levels' logits, "level 1" (B, K₁) and so on.
        """
        visual = self.visual(self.backbone, features)
        memory, positions = self.decoder.encode(visual)
        queries: Tensor | None = self.queries if self.project is None else self.project(self.label_text)
        logits: list[Tensor] = []
        evidence: dict[str, Tensor] = {}
        for level, (layer, start, head) in enumerate(zip(self.decoder.layers, self.starts, self.heads, strict=True)):
            hidden = torch.sigmoid(start(memory.transpose(1, 2))).transpose(1, 2)
            hidden, shares = layer(hidden, queries, memory, positions, attention=maps and level == 0)
            logits.append(head(self.decoder.norm(hidden)))
            if level + 1 < len(self.heads):
                queries = self._mean_of_children(level + 1, hidden)
            if shares is not None:
                evidence["fused"] = attention_map(shares.view(*shares.shape[:2], *visual.shape[2:]))
        coarser = {f"level {level}": found for level, found in enumerate(logits) if level}
        return Output(logits[0], maps=evidence, extras=coarser)

    def _mean_of_children(self, level: int, hidden: Tensor) -> Tensor:
        """Return a level's queries (B, K_h, d): the mean state (B, K_{h−1}, d) of the names below each name."""
        step = self.get_buffer(f"step{level - 1}")
        return (step / step.sum(dim=0)).T @ hidden

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return each photo's combined loss of the levels, plus the weighted loss of the finest level."""
        fine = self._of_photos(output.logits, targets)
        losses, level_targets = [fine], targets
        for level, logits in enumerate(output.extras.values()):
            level_targets = coarser_targets(level_targets, self.get_buffer(f"step{level}"))
            losses.append(self._of_photos(logits, level_targets))
        stacked = torch.stack(losses)
        joined = stacked.amax(dim=0) if self.options.levels == "max" else stacked.sum(dim=0)
        terms = {"levels": joined, "fine": self.options.fine * fine}
        return {name: term.sum() if self.loss_reduction == "sum" else term.mean() for name, term in terms.items()}

    def _of_photos(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each photo (B,), summed over names."""
        single = self.options.loss.model_copy(update={"reduction": "none"})
        return single(logits, targets).view(logits.shape[0], -1).sum(dim=1)

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.visual.branch, self.options.deep_lr)
