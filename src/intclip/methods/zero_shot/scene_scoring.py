"""Labels scored through everyday scenes: first the scenes that a photo resembles, then the labels of these scenes.

A sentence such as "a person resting comfortably, free of worry" is far from every photo, and near to few; a scene
("a cup of tea on a table") is near to the photos that show it. So a photo is first compared with S scenes,

    a_s = softmax over s of SCALE · cos(x − μ, t_s − t̄)

with μ the mean photo and t̄ the mean scene, which closes the gap between the modalities (Liang et al., NeurIPS 2022).
SCALE is that of the loss which trained the joint space, so a is the posterior that the training fitted.

A label that was judged scene by scene (Intentonomy's, `labels/scenes.yaml`) has p = Σ_s a_s · plausible_s: the
expected share of plausible answers. Any other label k is compared with the scenes by its sentence: with z_ks the cosine
in deviations above the label's mean over scenes, r_ks = sigmoid(SLOPE · z_ks + OFFSET) is how plausible the label is in
the scene; what a judged label would have got from its sentence alone set the two numbers. Then p_k = Σ_s a_s r_ks, and

    e_k = logit p_k − logit r̄_k + DIRECT · (deviations of the photo's cosine with the sentence above ordinary photos)
    logit_k = logit r̄_k − log max(1, K / LABELS) + e_k − Σ_j e_j / (K + SHRINK)

where the last term standardises over the labels (as SPARC does, CVPR 2025): what speaks for all labels speaks for none.
OFFSET is that of 28 labels, about three of them plausible in a scene; of a longer list as many are, not more.
"""

from importlib.resources import as_file, files

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from intclip.backbones.base import Backbone
from intclip.backbones.lite_towers import LITE_BACKBONES
from intclip.errors import CheckpointError, RecipeError
from intclip.labels.scenes import Scenes, load_scenes
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.zero_shot.scene_embeddings import FILE, TENSOR, fingerprint

SCALE = 20.0
"""`logit_scale` of the recipe that trained the joint space."""
SLOPE, OFFSET = 0.87, -2.49
"""Logistic regression of Intentonomy's judged scenes on its sentences' deviations (tests/methods/test_scenes.py)."""
LABELS = 28
DIRECT = 0.4
SHRINK = 5
_LEAST = 1e-4


class SceneScoring(nn.Module):
    """Logits of a taxonomy's labels from photos' embeddings; nothing trains and nothing is stored.

    Args:
        backbone: An embedded one, whose sentence tower the scenes were embedded with.
        taxonomy: K labels.
        text: Unit embeddings (K, D) of the labels' sentences.

    Raises:
        RecipeError: The backbone is not an embedded one.
    """

    mean: Tensor
    scenes: Tensor
    relevance: Tensor
    judged: Tensor
    direction: Tensor
    center: Tensor
    base: Tensor
    prior: Tensor

    def __init__(self, backbone: Backbone, taxonomy: Taxonomy, text: Tensor) -> None:
        super().__init__()
        if backbone.name not in LITE_BACKBONES or backbone.image_moments is None:
            raise RecipeError(f"backbone {backbone.name} does not support scenes; choose {', '.join(LITE_BACKBONES)}")
        bank = load_scenes()
        mean, covariance = (moment.to(text) for moment in backbone.image_moments)
        plausible, judged = (torch.from_numpy(values).to(text.device) for values in bank.judged(taxonomy))
        values = label_values(scene_embeddings(bank).to(text), mean, covariance, text, plausible.to(text), judged)
        # Not stored: they follow from the backbone, the scenes and the labels' sentences, which a bundle keeps.
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def shares(self, embeddings: Tensor) -> Tensor:
        """Return the share of each scene, (…, S) with sum 1, for embeddings (…, D) of any norm."""
        x = F.normalize(F.normalize(embeddings, dim=-1) - self.mean, dim=-1)
        return (x @ self.scenes.T).softmax(dim=-1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Logits (…, K) of embeddings (…, D) of any length."""
        found = _logit(self.shares(embeddings) @ self.relevance)
        direct = F.normalize(embeddings, dim=-1) @ self.direction.T - self.center
        evidence = (found - self.base + direct) * ~self.judged
        count = (~self.judged).sum()
        others = evidence.sum(dim=-1, keepdim=True) / (count + SHRINK)
        return torch.where(self.judged, found, self.prior + evidence - others)


def scene_embeddings(bank: Scenes) -> Tensor:
    """Unit embeddings (S, D) of the scenes by the sentence tower of the embedded backbones, from the package.

    Raises:
        CheckpointError: They are of other scenes.
    """
    with (
        as_file(files("intclip.methods.zero_shot").joinpath(FILE)) as path,
        safe_open(path, framework="pt") as stored,
    ):
        if (stored.metadata() or {}).get("scenes") != fingerprint(bank):
            raise CheckpointError(f"{path} is of other scenes; write it with {fingerprint.__module__}")
        return F.normalize(stored.get_tensor(TENSOR).float(), dim=1)


def label_values(
    scenes: Tensor, mean: Tensor, covariance: Tensor, text: Tensor, plausible: Tensor, judged: Tensor
) -> dict[str, Tensor]:
    """What `SceneScoring` keeps, by name.

    Args:
        scenes: Unit embeddings (S, D) of the scenes.
        mean: (D,) of unit embeddings of photos.
        covariance: (D, D) of these.
        text: Unit embeddings (K, D) of the labels' sentences.
        plausible: (S, K), how plausible each label is in each scene, of those that people judged.
        judged: (K,), which these are.
    """
    center = scenes.mean(dim=0)
    cosines = scenes @ text.T
    deviations = (cosines - cosines.mean(dim=0)) / cosines.std(dim=0).clamp_min(1e-6)
    relevance = torch.where(judged, plausible, torch.sigmoid(SLOPE * deviations + OFFSET))
    direction = F.normalize(text - center, dim=1)
    spread = ((direction @ covariance) * direction).sum(dim=1).clamp_min(1e-12).sqrt()
    direction = DIRECT * direction / spread[:, None]
    base = _logit(relevance.mean(dim=0))
    return {
        "mean": mean,
        "scenes": SCALE * F.normalize(scenes - center, dim=1),
        "relevance": relevance,
        "judged": judged,
        "direction": direction,
        "center": direction @ mean,
        "base": base,
        "prior": base - ((~judged).sum() / LABELS).clamp_min(1).log(),
    }


def _logit(probability: Tensor) -> Tensor:
    inside = probability.clamp(_LEAST, 1 - _LEAST)
    return inside.log() - (1 - inside).log()  # not torch.logit, which converters do not know
