"""IntCLIP: frozen and trainable deep layers on one trunk, combined, and compared with learned prompt pairs.

Yang, Ye, Tao: Synergy of Sight and Semantics, ECCV 2024. README.md in this folder has the equations, open questions of
the paper, and results.
"""

from collections.abc import Iterable
from typing import Literal

from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn

from intclip.backbones.base import Backbone, FeatureName, Features
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.aggregation import ATTENTION, AggregationVariant, SightAssistedAggregation
from intclip.methods.base import Classifier, ClassifierOptions, Output, ParameterGroup
from intclip.methods.branches import Branch
from intclip.methods.free_prompts import FreeHalfPrompts
from intclip.methods.hierarchy_loss import Hierarchy, HierarchyOptions
from intclip.methods.label_transformer import LabelTransformer
from intclip.methods.logit_graph import LogitGraph, LogitGraphOptions
from intclip.methods.loss_options import LossOptions
from intclip.methods.prompts import PromptLearner, PromptOptions
from intclip.methods.region_pooling import PoolingOptions, RegionPooling


class LearningRates(BaseModel, frozen=True, extra="forbid"):
    """Multipliers of the recipe's learning rate, by group of parameters.

    Attributes:
        prompts: Context vectors.
        deep: The trainable copy of the deep layers (released code: 0.1).
        aggregation: Sight-assisted aggregation (released code: 0.1).
        text_residual: Residuals of the text features, and free negatives, if any.
        pooling: Learned scales and biases, if any.
        label_transformer: Transformer over the levels of the labels, if any.
        graph: The label graph's two strengths, if any.
        hierarchy: Context vectors of the parents' prompts, if any.
    """

    prompts: float = Field(default=1.0, gt=0)
    deep: float = Field(default=0.1, gt=0)
    aggregation: float = Field(default=0.1, gt=0)
    text_residual: float = Field(default=1.0, gt=0)
    pooling: float = Field(default=1.0, gt=0)
    label_transformer: float = Field(default=0.1, gt=0)
    graph: float = Field(default=1.0, gt=0)
    hierarchy: float = Field(default=1.0, gt=0)


class IntclipOptions(PromptOptions, ClassifierOptions, frozen=True):
    """Options of IntCLIP; the defaults are the paper's.

    Attributes:
        branches: "dual", or "single" without the frozen branch (Table 4).
        train: "semantic" trains a copy of the deep layers, "all" a copy of trunk and deep layers, "none" no image
            layers; then a single branch is DualCoOp, and two branches are one map aggregated with itself (Table 4).
        aggregation: Combination of the two branches; not used by a single branch.
        first_region: Also pool the first region of the semantic map before aggregation. The released code does so: it
            removes the mean token, and then prepends what has become the first token.
        prompts_every: Contexts are updated only at every n-th step; see `PromptLearner`.
        text_residual: Learned vectors added to the text features; see `PromptLearner`.
        negative: The negative half of a pair: a "prompt" like the positive one, or a "free" vector without the text
            encoder, with an offset on the positive half; see `../free_prompts.py`.
        free_std: Initial standard deviation of the free vector and the offset.
        pooling: Pooling of region similarities to logits.
        loss: The classification loss.
        sight_loss: Weight λ of the same loss on the sight map's logits.
        label_transformer: A transformer adds coarser labels to the text features, `../label_transformer.py`.
        graph: Label graph on the logits, `../logit_graph.py`; null for none.
        hierarchy: Losses that tie labels to their parents, `../hierarchy_loss.py`; null for none.
        lr: Multipliers of the learning rate.
    """

    branches: Literal["dual", "single"] = "dual"
    train: Literal["none", "semantic", "all"] = "semantic"
    aggregation: AggregationVariant = "paper"
    first_region: bool = False
    sentence_form: str = "11-15"
    period: bool = False
    prompts_every: int = Field(default=1, ge=1)
    text_residual: bool = False
    negative: Literal["prompt", "free"] = "prompt"
    free_std: float = Field(default=1.0, gt=0)
    pooling: PoolingOptions = PoolingOptions()
    loss: LossOptions = LossOptions()
    sight_loss: float = Field(default=0, ge=0)
    label_transformer: bool = False
    graph: LogitGraphOptions | None = None
    hierarchy: HierarchyOptions | None = None
    lr: LearningRates = LearningRates()

    @model_validator(mode="after")
    def _one_offset(self) -> "IntclipOptions":
        if self.negative == "free" and self.text_residual:
            raise ValueError("negative free has its own offset; set text_residual to false")
        return self


class IntCLIP(Classifier):
    """IntCLIP for any backbone with region features."""

    Options = IntclipOptions
    options: IntclipOptions

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: IntclipOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        self.needs = _needs(options)
        self.prompts = _prompts(backbone, taxonomy, options)
        self.pooling = RegionPooling(options.pooling, len(taxonomy.names))
        self.semantic: Branch | None = None
        if options.train == "semantic":
            self.semantic = Branch(backbone.deep)
        elif options.train == "all":
            self.semantic = Branch(backbone.trunk, backbone.deep)
        self.aggregation: SightAssistedAggregation | None = None
        if options.branches == "dual":
            self.aggregation = SightAssistedAggregation(backbone.embed_dim, variant=options.aggregation)
        self.levels = LabelTransformer(backbone.text, taxonomy) if options.label_transformer else None
        self.graph = None if options.graph is None else LogitGraph(len(taxonomy), options.graph)
        self.hierarchy: Hierarchy | None = None
        if options.hierarchy is not None:
            self.hierarchy = Hierarchy(
                backbone.text, taxonomy, options.hierarchy, options.pooling, context_length=options.context_length
            )

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Determine the label graph's neighbours, if it has a graph."""
        if self.graph is not None:
            self.graph.fit(targets for _, targets in batches)

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); maps are "sight" and "semantic" (if the branch exists) and "fused".

        With maps, the extra "attention" (B, N, N), queries by keys, is the aggregation's, if it has one.

        Args:
            features: Features in `needs`.
            maps: Fill the region logits.
        """
        text = self.prompts(self.backbone.text)
        if self.levels is not None:
            text = self.levels(text)
        sight = features.get("regions")
        semantic = self._semantic_map(features)
        fused, attention = semantic, None
        if self.aggregation is not None:
            fused, attention = self.aggregation.attend(semantic, features["regions"])
        first = semantic.flatten(2)[:, :, :1] if self.options.first_region else None
        logits = self.pooling(fused, text, first)
        output = Output(logits if self.graph is None else self.graph(logits))
        if self.hierarchy is not None and self.training:
            output.extras["parent_logits"] = self.hierarchy(self.backbone.text, fused)
        if self.options.sight_loss and self.training:
            output.extras["sight_logits"] = self.pooling(features["regions"], text)
        if maps:
            self.pooling.show(output, "fused", fused, text)
            if sight is not None:
                self.pooling.show(output, "sight", sight, text)
            if self.semantic is not None:
                self.pooling.show(output, "semantic", semantic, text)
            if attention is not None:
                output.extras[ATTENTION] = attention
        return output

    def before_step(self, step: int) -> None:
        """Pass the step to the prompts, for `prompts_every`."""
        self.prompts.before_step(step)

    def loss(self, output: Output, targets: Tensor) -> dict[str, Tensor]:
        """Return the classification loss, the sight loss if λ > 0, and the hierarchy's losses, if any."""
        terms = {"classification": self.options.loss(output.logits, targets)}
        if "sight_logits" in output.extras:
            terms["sight"] = self.options.sight_loss * self.options.loss(output.extras["sight_logits"], targets)
        if self.hierarchy is not None and "parent_logits" in output.extras:
            parents = output.extras["parent_logits"]
            terms |= self.hierarchy.losses(output.logits, parents, targets, self.options.loss)
        return terms

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return non-empty groups: "prompts", "deep", "aggregation", "pooling" and those of enabled options."""
        lr = self.options.lr
        context = self.prompts.context
        beside_context = [parameter for parameter in _learnable(self.prompts) if parameter is not context]
        groups = [
            ParameterGroup("prompts", [context], lr.prompts),
            ParameterGroup("text_residual", beside_context, lr.text_residual),
            ParameterGroup("deep", _learnable(self.semantic), lr.deep),
            ParameterGroup("aggregation", _learnable(self.aggregation), lr.aggregation),
            ParameterGroup("pooling", _learnable(self.pooling), lr.pooling, weight_decay_multiplier=0),
            ParameterGroup("label_transformer", _learnable(self.levels), lr.label_transformer),
            ParameterGroup("graph", _learnable(self.graph), lr.graph, weight_decay_multiplier=0),
            ParameterGroup("hierarchy", _learnable(self.hierarchy), lr.hierarchy),
        ]
        return [group for group in groups if group.parameters]

    def _semantic_map(self, features: Features) -> Tensor:
        """Return region features of the trainable branch, or the sight map if no image layers train."""
        if self.semantic is None:
            return features["regions"]
        return self.backbone.head.regions(self.semantic(features["pixels" if self.options.train == "all" else "trunk"]))


def _needs(options: IntclipOptions) -> tuple[FeatureName, ...]:
    semantic: dict[str, tuple[FeatureName, ...]] = {"none": (), "semantic": ("trunk",), "all": ("pixels",)}
    reads_sight = options.branches == "dual" or options.train == "none" or options.sight_loss > 0
    return (*semantic[options.train], *(("regions",) if reads_sight else ()))


def _prompts(backbone: Backbone, taxonomy: Taxonomy, options: IntclipOptions) -> PromptLearner | FreeHalfPrompts:
    text, sentences, every = backbone.text, options.sentences(taxonomy), options.prompts_every
    if options.negative == "free":
        return FreeHalfPrompts(text, sentences, options, std=options.free_std, every=every)
    return PromptLearner(text, sentences, options, every=every, residual=options.text_residual)


def _learnable(module: nn.Module | None) -> list[nn.Parameter]:
    return [] if module is None else [parameter for parameter in module.parameters() if parameter.requires_grad]
