"""CPAD: stages of the image tower are aligned with levels of the labels, with learned loss weights.

Ye et al., Cross-Modality Pyramid Alignment for Visual Intention Understanding, IEEE TIP (2023). Only its abstract is
public: README.md in this folder has the equations and lists our choices.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from intclip.backbones.base import Backbone, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.losses import soft_cross_entropy
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.branches import Branch
from intclip.methods.label_graph import text_embeddings
from intclip.methods.label_levels import coarser_targets, level_steps
from intclip.methods.loss_options import LossOptions
from intclip.methods.region_maps import region_map
from intclip.methods.stage_maps import LAST, stage_maps, stage_sources
from intclip.methods.visual_map import deep_and_rest


class CpadOptions(ClassifierOptions, frozen=True):
    """Options of CPAD. Unpublished settings have our values; see README.md.

    Attributes:
        train: "deep" trains a copy of the deep layers, which gives the last stage.
        dim: Common width d of photos and texts.
        levels: Maximum number of levels of the taxonomy, from the finest. The finest is predicted from stage 4, each
            coarser one from the stage before.
        sentence_form: Form of the finest labels' sentences; coarser labels use their names.
        top_down: Each level also uses the output of the coarser one.
        temperature: τ of cosines between photos and texts.
        alignment: Weight of the alignment of photos and texts; at 0 the cosines are used only in the logits.
        weighting: "dynamic" learns the losses' weights as uncertainties, "equal" adds the losses.
        loss: The classification loss of every level.
        deep_lr: Multiplier of the learning rate for the deep layers.
    """

    train: Literal["none", "deep"] = "deep"
    dim: int = Field(default=512, gt=0)
    levels: int = Field(default=3, ge=1, le=LAST)
    sentence_form: str = "fine"
    top_down: bool = True
    temperature: float = Field(default=0.1, gt=0)
    alignment: float = Field(default=1.0, ge=0)
    weighting: Literal["dynamic", "equal"] = "dynamic"
    loss: LossOptions = LossOptions(gamma_pos=0, gamma_neg=2, margin=0, reduction="batch")
    deep_lr: float = Field(default=0.1, gt=0)


class CPAD(Classifier):
    """CPAD for any backbone and taxonomy.

    Attributes:
        uncertainty: Log variances s of the losses (classification and alignment by level), if learned.
    """

    Options = CpadOptions
    options: CpadOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: CpadOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        names = list(taxonomy.levels.values())[: options.levels]
        self._stages = tuple(range(LAST, LAST - len(names), -1))
        self.branch = Branch(backbone.deep) if options.train == "deep" else None
        shapes, self._sources = stage_sources(backbone, self._stages, trains=self.branch is not None)
        self.needs = tuple(dict.fromkeys(self._sources.values()))
        texts = [taxonomy.sentences(options.sentence_form), *map(list, names[1:])]
        for level, sentences in enumerate(texts):
            # Not stored: derived from the texts, which are in the bundle.
            self.register_buffer(f"text{level}", text_embeddings(backbone.text, sentences), persistent=False)
        for level, step in enumerate(level_steps(taxonomy)[: len(names) - 1]):
            self.register_buffer(f"step{level}", step, persistent=False)
        dim = options.dim
        self.photos = nn.ModuleList(nn.Linear(shapes[stage][0], dim) for stage in self._stages)
        self.words = nn.Linear(backbone.text.embed_dim, dim)
        self.down = nn.ModuleList(nn.Linear(dim, dim) for _ in names[1:] if options.top_down)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in names)
        self.heads = nn.ModuleList(nn.Linear(dim, len(level)) for level in names)
        count = len(names) * (2 if options.alignment else 1)
        self.uncertainty = nn.Parameter(torch.zeros(count)) if options.weighting == "dynamic" else None

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "fused" is each region's cosine with the label's text, over τ.

        Extras are the logits of every level, "level 0" (B, K), "level 1" (B, K₁) and so on, and its cosines over τ,
        "cosines 0" and so on.
        """
        found = stage_maps(self.backbone, features, self._sources, self.branch)
        visual = [found[stage] for stage in self._stages]
        logits: list[Tensor] = []
        extras: dict[str, Tensor] = {}
        above: Tensor | None = None
        for level in reversed(range(len(self._stages))):
            state = self.photos[level](visual[level].mean(dim=(2, 3)))
            if above is not None and self.options.top_down:
                state = state + self.down[level](F.relu(above))
            above = self.norms[level](state)
            cosines = self._cosines(above, level)
            logits.append(self.heads[level](above) + cosines)
            extras |= {f"level {level}": logits[-1], f"cosines {level}": cosines}
        output = Output(logits[-1], extras=extras)
        if maps:
            output.maps["fused"] = region_map(
                lambda rows: self._cosines(self.norms[0](self.photos[0](rows)), 0), visual[0]
            )
        return output

    def _cosines(self, states: Tensor, level: int) -> Tensor:
        """Return cosines over τ (…, K_h) of photo states (…, d) with a level's texts."""
        words = F.normalize(self.words(self.get_buffer(f"text{level}")), dim=1)
        return F.normalize(states, dim=-1) @ words.T / self.options.temperature

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the weighted classification and alignment losses of all levels."""
        options = self.options
        terms: dict[str, Tensor] = {}
        for level in range(len(self._stages)):
            if level:
                targets = coarser_targets(targets, self.get_buffer(f"step{level - 1}"))
            terms[f"level_{level}"] = options.loss(output.extras[f"level {level}"], targets)
            if options.alignment:
                aligned = soft_cross_entropy(output.extras[f"cosines {level}"], targets, reduction="batch")
                terms[f"alignment_{level}"] = self.weighed(options.alignment * aligned, targets.shape[0])
        if self.uncertainty is None:
            return terms
        known = zip(terms.items(), self.uncertainty.unbind(), strict=True)
        return {name: torch.exp(-s) * term + self.weighed(s, targets.shape[0]) for (name, term), s in known}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.branch, self.options.deep_lr)
