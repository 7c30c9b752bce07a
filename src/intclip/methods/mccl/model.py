"""MCCL: patches of several stages composed of class-wise prototypes, queried by label embeddings from a graph.

Multi-Grained Compositional Visual Clue Learning for Image Intent Recognition, arXiv 2504.18201 (2025). Only the
abstract, the introduction and summaries are public: README.md in this folder has the equations and lists our
choices.
"""

import logging
from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from intclip.backbones import load_backbone
from intclip.backbones.base import Backbone, Features
from intclip.errors import DatasetError, RecipeError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.base import Classifier, Output, ParameterGroup
from intclip.methods.branches import Branch
from intclip.methods.label_graph import LabelCounts, LabelGCN, label_adjacency, label_embeddings
from intclip.methods.mccl.options import McclOptions
from intclip.methods.mccl.stage import Moments, Stage, sample_patches
from intclip.methods.prototypes import allocate
from intclip.methods.query_decoder import GroupLinear, QueryDecoder
from intclip.methods.region_maps import attention_map
from intclip.methods.stage_maps import LAST, stage_maps, stage_sources
from intclip.methods.visual_map import deep_and_rest

_log = logging.getLogger("intclip.methods")


class MCCL(Classifier):
    """MCCL for any backbone.

    Attributes:
        label_text: Label embeddings (K, D) of the text encoder.
        adjacency: Normalised label graph (K, K); the identity before `prepare`.
    """

    Options = McclOptions
    options: McclOptions
    label_text: Tensor
    adjacency: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, options: McclOptions) -> None:
        super().__init__(backbone, taxonomy, options)
        classes, dim = len(taxonomy), cast(int, options.decoder.dim)
        if options.pool.prototypes < classes:
            raise RecipeError(f"pool.prototypes {options.pool.prototypes} is below the number of classes, {classes}")
        self.branch: Branch | None = None
        if options.train == "deep":
            if LAST not in options.stages:
                raise RecipeError("train: deep only changes stage 4, which is not in stages; add 4, or set train: none")
            self.branch = Branch(backbone.deep)
        shapes, self._sources = stage_sources(backbone, options.stages, trains=self.branch is not None)
        self.needs = tuple(dict.fromkeys(self._sources.values()))
        self._stages = nn.ModuleList(Stage(shapes[stage][0], dim, options.pool) for stage in options.stages)
        count = len(self._stages)
        self.gate = nn.Parameter(torch.zeros(count)) if options.gates == "learned" else None
        self.photo_gate = nn.Linear(count * dim, count) if options.gates == "photo" else None
        if self.photo_gate is not None:
            nn.init.zeros_(self.photo_gate.weight)
            nn.init.zeros_(self.photo_gate.bias)
        self.register_buffer("label_text", _label_text(backbone, taxonomy, options))
        self.register_buffer("adjacency", torch.eye(classes, device=self.label_text.device))
        # Not `graph`: traced modules have an attribute of that name, and OpenVINO would lose the layer.
        self.label_graph = LabelGCN(self.label_text.shape[1], *[dim] * max(options.graph_layers, 1))
        self.decoder = QueryDecoder(dim, options.decoder)
        self.head = GroupLinear(classes, dim)

    @property
    def stages(self) -> dict[int, Stage]:
        """Return the stages by number."""
        return dict(zip(self.options.stages, cast(Iterable[Stage], self._stages), strict=True))

    def prepare(self, batches: Iterable[tuple[Features, Tensor]]) -> None:
        """Compute label graph, stage scales, class prototypes and composition scales, in two passes.

        Raises:
            DatasetError: The training split has no positive label.
        """
        counts, moments = LabelCounts(len(self.taxonomy)), {stage: Moments() for stage in self.stages}
        for features, targets in batches:
            counts.add(targets)
            with torch.no_grad():
                for stage, stage_map in self._maps(features).items():
                    moments[stage].add(stage_map.permute(0, 2, 3, 1))
        if not counts.counts.sum() > 0:
            raise DatasetError("no training photo has a label, so MCCL cannot make prototypes")
        for stage, module in self.stages.items():
            moments[stage].give(module.scale)
        if self.options.graph_layers:
            self.adjacency.copy_(label_adjacency(counts.conditional(), self.label_text, self.options.graph))
        if self.options.pool.initial == "classes" or self.options.pool.composition != "none":
            self._prepare_pools(batches, counts.counts)

    def _prepare_pools(self, batches: Iterable[tuple[Features, Tensor]], counts: Tensor) -> None:
        pool = self.options.pool
        rates = (pool.patches / counts.clamp_min(1e-12)).float().to(self.adjacency.device)
        found: dict[int, list[list[Tensor]]] = {s: [[] for _ in self.taxonomy.names] for s in self.stages}
        for features, targets in batches:
            with torch.no_grad():
                for stage, stage_map in self._maps(features).items():
                    patches = self.stages[stage].patches(stage_map)
                    for label, points in sample_patches(patches, targets, rates).items():
                        found[stage][label].append(points.cpu())
        allotted = allocate(counts.numpy(), pool.prototypes, power=pool.rarity).tolist()
        for stage, module in self.stages.items():
            empty = torch.empty(0, module.pool.prototypes.shape[1])
            samples = [torch.cat([empty, *parts]) for parts in found[stage]]
            if pool.initial == "classes":
                module.place_prototypes(samples, allotted, seed=stage)
            module.scale_compositions(torch.cat(samples))

    def forward(self, features: Features, *, maps: bool = False) -> Output:
        """Return logits (B, K); the map "fused" is each label's attention, positive where above uniform."""
        fused = self._fuse([self.stages[stage](stage_map) for stage, stage_map in self._maps(features).items()])
        states, attention = self.decoder(fused, self.label_queries(), attention=maps)
        output = Output(self.head(states))
        if attention is not None:
            output.maps["fused"] = attention_map(attention)
        return output

    def label_queries(self) -> Tensor:
        """Return the label queries (K, d): label embeddings after the graph."""
        queries: Tensor = self.label_graph(self.label_text, self.adjacency)
        return queries

    def after_step(self) -> None:
        """Update prototypes by online clustering (Eq. 5), and their usage."""
        for stage in self.stages.values():
            stage.pool.step()

    def after_epoch(self, epoch: int) -> None:
        """Warn if the prototypes have collapsed."""
        pool = self.options.pool
        if pool.composition == "none":
            return
        for stage, used in self.prototypes_in_use().items():
            if used < pool.collapse * pool.prototypes:
                _log.warning(
                    "epoch %d: the prototypes of stage %d have collapsed, %.1f of %d are in effective use; lower "
                    "pool.temperature or raise pool.momentum",
                    epoch,
                    stage,
                    used,
                    pool.prototypes,
                )

    def prototypes_in_use(self) -> dict[int, float]:
        """Return, by stage, the number of prototypes in effective use (perplexity of usage)."""
        return {stage: module.pool.perplexity() for stage, module in self.stages.items()}

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the groups "deep" (if trained) and "rest"."""
        return deep_and_rest(self, self.branch, self.options.deep_lr)

    def patches(self, features: Features) -> dict[int, Tensor]:
        """Return unit patches (B, H, W, C) by stage."""
        return {stage: self.stages[stage].patches(stage_map) for stage, stage_map in self._maps(features).items()}

    def _maps(self, features: Features) -> dict[int, Tensor]:
        return stage_maps(self.backbone, features, self._sources, self.branch)

    def _fuse(self, maps: list[Tensor]) -> Tensor:
        """Return the weighted sum of maps (B, d, H_i, W_i) on the coarsest grid, (B, d, H, W)."""
        grid = (maps[-1].shape[2], maps[-1].shape[3])
        pooled = torch.stack([m if m.shape[2:] == grid else F.adaptive_avg_pool2d(m, grid) for m in maps], dim=1)
        if self.photo_gate is not None:
            shares = self.photo_gate(pooled.mean(dim=(3, 4)).flatten(1)).softmax(dim=1)
        else:
            gate = self.gate if self.gate is not None else pooled.new_zeros(len(maps))
            shares = gate.softmax(dim=0)[None]
        fused: Tensor = (shares[:, :, None, None, None] * pooled).sum(dim=1)
        return fused


def _label_text(backbone: Backbone, taxonomy: Taxonomy, options: McclOptions) -> Tensor:
    if options.text_encoder == "random":
        device = next(backbone.parameters()).device
        return torch.randn(len(taxonomy), backbone.embed_dim, device=device)
    other = options.text_encoder not in ("backbone", backbone.name)
    text = load_backbone(options.text_encoder).text if other else backbone.text
    return label_embeddings(text, taxonomy, options.sentence_form).to(next(backbone.parameters()).device)
