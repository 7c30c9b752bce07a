"""Score labels through everyday scenes: first the similarity of photo and scenes, then the labels of the scenes.

A sentence such as "a person resting comfortably, free of worry" has low similarity to nearly all photos; a scene ("a
cup of tea on a table") has high similarity to photos that show it. So a photo is first compared with S scenes,

    a_s = softmax over s of SCALE · cos(x − μ, t_s − t̄)

with the mean photo μ and the mean scene t̄, which closes the modality gap (Liang et al., NeurIPS 2022). SCALE is that
of the loss in the joint space's training, so a is the posterior fitted in training.

A label annotated for all scenes (Intentonomy's, `labels/scenes.yaml`) has p = Σ_s a_s · plausible_s, the expected
share of plausible answers. Any other label k is compared with the scenes by its sentence: z_ks is the cosine in
standard deviations above the label's mean over scenes, and r_ks = sigmoid(SLOPE · z_ks + OFFSET) the plausibility of
the label in the scene; both constants were fitted on the annotated labels' sentences. Then p_k = Σ_s a_s r_ks, and

    e_k = logit p_k − logit r̄_k + DIRECT · d_k
    logit_k = logit r̄_k − log max(1, K / LABELS) + e_k − Σ_j e_j / (K + SHRINK)

where d_k is the photo's cosine with the sentence, in standard deviations above ordinary photos, and the last term
subtracts evidence common to all labels (as in SPARC, CVPR 2025). OFFSET was fitted for 28 labels, about three of them
plausible in a scene; with more labels, the number of plausible ones stays the same.
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
"""`logit_scale` in the recipe of the joint space."""
SLOPE, OFFSET = 0.87, -2.49
"""Logistic regression of Intentonomy's annotated scenes on its sentences' z (tests/methods/test_scenes.py)."""
LABELS = 28
DIRECT = 0.4
SHRINK = 5
_LEAST = 1e-4


class SceneScoring(nn.Module):
    """Logits of a taxonomy's labels from photo embeddings, without trained or stored parameters.

    Args:
        backbone: An embedded backbone, whose sentence tower encoded the scenes.
        taxonomy: The K labels.
        text: Unit embeddings (K, D) of the labels' sentences.

    Raises:
        RecipeError: The backbone is not embedded.
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
        # Not stored: derived from the backbone, the scenes and the labels' sentences, which are in the bundle.
        for name, value in values.items():
            self.register_buffer(name, value, persistent=False)

    def shares(self, embeddings: Tensor) -> Tensor:
        """Return the share of each scene, (…, S) with sum 1, for embeddings (…, D) of any norm."""
        x = F.normalize(F.normalize(embeddings, dim=-1) - self.mean, dim=-1)
        return (x @ self.scenes.T).softmax(dim=-1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return logits (…, K) of embeddings (…, D) of any norm."""
        found = _logit(self.shares(embeddings) @ self.relevance)
        direct = F.normalize(embeddings, dim=-1) @ self.direction.T - self.center
        evidence = (found - self.base + direct) * ~self.judged
        count = (~self.judged).sum()
        others = evidence.sum(dim=-1, keepdim=True) / (count + SHRINK)
        return torch.where(self.judged, found, self.prior + evidence - others)


def scene_embeddings(bank: Scenes) -> Tensor:
    """Load unit embeddings (S, D) of the scenes by the embedded backbones' sentence tower.

    Raises:
        CheckpointError: They belong to other scenes.
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
    """Compute the tensors of `SceneScoring`, by name.

    Args:
        scenes: Unit embeddings (S, D) of the scenes.
        mean: (D,) of unit embeddings of photos.
        covariance: (D, D) of these embeddings.
        text: Unit embeddings (K, D) of the labels' sentences.
        plausible: (S, K) plausibility of each label in each scene, for annotated labels.
        judged: (K,), the annotated labels.
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
    return inside.log() - (1 - inside).log()  # not torch.logit, which converters do not support
