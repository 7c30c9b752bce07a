"""CoOp, CoCoOp and Tip-Adapter in limiting cases that equal other methods, and compared with plain loops."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fakes import TinyBackbone, tiny_taxonomy
from intclip.backbones.base import Features
from intclip.errors import DatasetError, RecipeError
from intclip.labels.reading import parse_taxonomy
from intclip.methods.base import Method
from intclip.methods.prompts import PromptOptions
from intclip.methods.registry import build_method

FORM = {"sentence_form": "11-15"}


def built(backbone: TinyBackbone, name: str, **options: object) -> Method:
    torch.manual_seed(1)
    return build_method(name, backbone, tiny_taxonomy(), options)


def photos(backbone: TinyBackbone, count: int = 6, seed: int = 0) -> Features:
    pixels = torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(seed))
    return backbone.features(pixels, ("pooled", "regions"))


def with_moments(backbone: TinyBackbone) -> TinyBackbone:
    generator = torch.Generator().manual_seed(3)
    factor = 0.1 * torch.randn(8, 8, generator=generator)
    backbone.image_moments = (0.3 * torch.randn(8, generator=generator), factor @ factor.T + 0.01 * torch.eye(8))
    return backbone


@pytest.mark.parametrize("scoring", ["neutral", "moments"])
def test_coop_without_context_is_zero_shot(scoring: str) -> None:
    backbone = with_moments(TinyBackbone())
    options = {"scoring": scoring, **FORM}
    coop = built(backbone, "coop", context_length=0, **options)
    zero_shot = built(backbone, "zero_shot", templates=("{}.",), **options)
    for mode in (True, False):
        ours, theirs = coop.train(mode)(photos(backbone), maps=True), zero_shot(photos(backbone), maps=True)
        torch.testing.assert_close(ours.logits, theirs.logits)
        torch.testing.assert_close(ours.maps["sight"], theirs.maps["sight"])


def test_coop_with_words_for_context_is_zero_shot_with_a_template(tiny_backbone: TinyBackbone) -> None:
    words = {"context_length": 4, "context_words": "a photo of a"}
    template = {"sentence_form": "fine", "templates": ("a photo of a {}.",)}
    features = photos(tiny_backbone)
    expected = built(tiny_backbone, "zero_shot", **template)(features).logits
    torch.testing.assert_close(built(tiny_backbone, "coop", **words)(features).logits, expected)
    fewer = built(tiny_backbone, "coop", context_length=2, context_words="a photo of a").prompts.context
    torch.testing.assert_close(fewer, built(tiny_backbone, "coop", **words).prompts.context[:, :, :2])
    more = built(tiny_backbone, "coop", context_length=6, context_words="a photo of a").prompts.context
    torch.testing.assert_close(more[:, :, :4], built(tiny_backbone, "coop", **words).prompts.context)


@pytest.mark.parametrize("name", ["coop", "dualcoop", "intclip"])
def test_period_ends_sentences_that_have_no_end(tiny_backbone: TinyBackbone, name: str) -> None:
    method = partial(built, tiny_backbone, name, context_length=0, sentence_form="fine")
    prompts = method(period=True).prompts
    given = parse_taxonomy(["a", "b?", "c d"], "three")
    assert PromptOptions().sentences(given) == ["a.", "b?", "c d."]
    assert PromptOptions(period=False).sentences(given) == ["a", "b?", "c d"]
    assert not torch.equal(prompts.sentence, method(period=False).prompts.sentence)


def test_dual_coop_compares_its_halves_and_nothing_else(tiny_backbone: TinyBackbone) -> None:
    method = built(tiny_backbone, "coop", prompts="dual", context_length=3, class_specific=True, scale=7)
    features = photos(tiny_backbone)
    negative, positive = F.normalize(method.prompts.encode(tiny_backbone.text), dim=2)
    image = F.normalize(features["pooled"], dim=1)
    pairs = 7 * torch.stack([image @ negative.T, image @ positive.T])
    torch.testing.assert_close(torch.sigmoid(method(features).logits), pairs.softmax(dim=0)[1])
    equal = built(tiny_backbone, "coop", prompts="dual", context_length=0)
    torch.testing.assert_close(equal(features).logits, torch.zeros(6, 5), atol=1e-4, rtol=0)


@pytest.mark.parametrize("prompts", ["single", "dual"])
def test_cocoop_with_a_zero_meta_net_is_coop(prompts: str, tiny_backbone: TinyBackbone) -> None:
    options = {"prompts": prompts, "context_length": 3, "context_words": None, "class_specific": True}
    coop, cocoop = built(tiny_backbone, "coop", **options), built(tiny_backbone, "cocoop", **options)
    features = photos(tiny_backbone)
    assert not torch.allclose(cocoop(features).logits, coop(features).logits, atol=1e-3)
    with torch.no_grad():
        for parameter in cocoop.meta_net.parameters():
            parameter.zero_()
    ours, theirs = cocoop(features, maps=True), coop(features, maps=True)
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.maps["sight"], theirs.maps["sight"])


def test_cocoop_prompts_are_those_of_the_photo_alone(tiny_backbone: TinyBackbone) -> None:
    cocoop = built(tiny_backbone, "cocoop", prompts="dual", class_specific=True)
    features = photos(tiny_backbone, 3)
    together = cocoop.text_features(features)
    assert together.shape == (2, 3, 5, 8)
    coop = built(tiny_backbone, "coop", prompts="dual", class_specific=True, context_length=4)
    for row in range(3):
        shift = cocoop.meta_net(F.normalize(features["pooled"][row], dim=0))
        with torch.no_grad():
            coop.prompts.context.copy_(cocoop.prompts.context + shift)
        torch.testing.assert_close(together[:, row], coop.prompts.encode(tiny_backbone.text))


@pytest.mark.parametrize("name", ["coop", "cocoop"])
@pytest.mark.parametrize("kind", ["asl", "bce"])
def test_prompts_learn_from_either_loss(name: str, kind: str, tiny_backbone: TinyBackbone) -> None:
    method = built(
        tiny_backbone, name, scale=20, class_specific=True, loss={"kind": kind, "reduction": "batch"}
    ).train()
    features = photos(tiny_backbone, 8)
    targets = (torch.rand(8, 5, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    optimizer = torch.optim.Adam(method.learnable_parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        (loss,) = method.loss(method(features), targets).values()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_the_bias_takes_no_weight_decay_and_can_be_left_out(tiny_backbone: TinyBackbone) -> None:
    decay = {group.name: group.weight_decay_multiplier for group in built(tiny_backbone, "coop").parameter_groups()}
    assert decay == {"prompts": 1, "bias": 0}
    assert [group.name for group in built(tiny_backbone, "cocoop", bias=False).parameter_groups()] == ["prompts"]
    with pytest.raises(RecipeError, match=r"image moments.*neutral or auto"):
        built(tiny_backbone, "coop", scoring="moments")


TARGETS = torch.tensor(
    [
        [1, 0, 2 / 3, float("nan"), 0],
        [0, 1, 0, 1, 1 / 3],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1],
        [1, 0, 0, 0, float("nan")],
        [0, 1, 1, 0, 0],
    ]
)


def tip(backbone: TinyBackbone, *, fine_tune: bool = False, **cache: object) -> Method:
    method = built(backbone, "tip_adapter", fine_tune=fine_tune, cache=cache)
    features = photos(backbone)
    parts: list[tuple[Features, Tensor]] = [
        ({name: value[rows] for name, value in features.items()}, TARGETS[rows]) for rows in torch.arange(6).split(4)
    ]
    method.prepare(parts)
    return method.eval()


def test_tip_adapter_with_alpha_zero_is_zero_shot(tiny_backbone: TinyBackbone) -> None:
    features = photos(tiny_backbone, 4, seed=5)
    ours, theirs = (
        tip(tiny_backbone, alpha=0)(features, maps=True),
        built(tiny_backbone, "zero_shot")(features, maps=True),
    )
    torch.testing.assert_close(ours.logits, theirs.logits)
    torch.testing.assert_close(ours.maps["sight"], theirs.maps["sight"])


def test_tip_adapter_with_a_large_beta_is_the_nearest_neighbour(tiny_backbone: TinyBackbone) -> None:
    method = tip(tiny_backbone, beta=1e6, smoothing=1e-6)
    embeddings = photos(tiny_backbone, 7, seed=5)["pooled"]
    cached = F.normalize(photos(tiny_backbone)["pooled"], dim=1)
    nearest = (F.normalize(embeddings, dim=1) @ cached.T).argmax(dim=1)
    expected = TARGETS[nearest]
    assert len(set(nearest.tolist())) > 1
    frequency = torch.nansum(torch.cat([TARGETS, torch.full((1, 5), 0.5)]), dim=0) / (1 + (~TARGETS.isnan()).sum(dim=0))
    expected = torch.where(expected.isnan(), frequency, expected)  # where the neighbour is silent
    torch.testing.assert_close(method.cache_logits(embeddings).sigmoid(), expected, atol=1e-4, rtol=0)


def test_tip_adapter_is_a_weighted_mean_of_known_votes(tiny_backbone: TinyBackbone) -> None:
    method = tip(tiny_backbone, beta=4, alpha=2, smoothing=0.1)
    features = photos(tiny_backbone, 3, seed=5)
    zero_shot = built(tiny_backbone, "zero_shot")(features).logits
    cached = photos(tiny_backbone)["pooled"]
    for row in range(3):
        kernel = [torch.exp(4 * F.cosine_similarity(features["pooled"][row], key, dim=0)).item() for key in cached]
        for label in range(5):
            known = [i for i in range(6) if not TARGETS[i, label].isnan()]
            frequency = (0.5 + sum(TARGETS[i, label].item() for i in known)) / (1 + len(known))
            votes = sum(kernel[i] * TARGETS[i, label].item() for i in known) / sum(kernel)
            mass = sum(kernel[i] for i in known) / sum(kernel)
            q = torch.tensor((votes + 0.1 * frequency) / (mass + 0.1))
            expected = (zero_shot[row, label] + 2 * torch.logit(q)) / 3
            torch.testing.assert_close(method(features).logits[row, label], expected, atol=1e-3, rtol=1e-4)


def test_tip_adapter_f_trains_its_keys_and_no_photo_asks_itself(tiny_backbone: TinyBackbone) -> None:
    method = tip(tiny_backbone, fine_tune=True, beta=1e6, smoothing=1e-6)
    features = photos(tiny_backbone)
    itself = method.cache_logits(features["pooled"]).sigmoid()
    torch.testing.assert_close(itself[2], TARGETS[2], atol=1e-4, rtol=0)
    others = F.normalize(features["pooled"], dim=1)
    nearest = (others @ others.T).fill_diagonal_(-1).argmax(dim=1)
    learned = method.train().cache_logits(features["pooled"]).sigmoid()
    seen = ~TARGETS[nearest].isnan()
    torch.testing.assert_close(learned[seen], TARGETS[nearest][seen], atol=1e-4, rtol=0)

    method = tip(tiny_backbone, fine_tune=True, beta=5).train()
    assert [parameter.shape for parameter in method.learnable_parameters()] == [(6, 8)]
    (loss,) = method.loss(method(features), TARGETS).values()
    loss.backward()
    assert method.keys.grad is not None
    assert (method.keys.grad.abs().amax(dim=1) > 0).all()
    optimizer = torch.optim.Adam(method.learnable_parameters(), lr=0.02)
    for _ in range(30):
        optimizer.zero_grad()
        (now,) = method.loss(method(features), TARGETS).values()
        now.backward()
        optimizer.step()
    assert now < 0.95 * loss


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_no_photo_asks_itself_in_half_precision_either(dtype: torch.dtype, tiny_backbone: TinyBackbone) -> None:
    method = tip(tiny_backbone, fine_tune=True, beta=5).train()
    embeddings = photos(tiny_backbone)["pooled"]
    expected = method.cache_logits(embeddings)
    assert (method.eval().cache_logits(embeddings) - expected).abs().max() > 0.5
    with torch.autocast("cpu", dtype):
        found = method.train().cache_logits(embeddings)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0)


def test_a_cache_is_stored_with_its_size(tiny_backbone: TinyBackbone) -> None:
    for fine_tune in (False, True):
        method = tip(tiny_backbone, fine_tune=fine_tune)
        other = built(tiny_backbone, "tip_adapter", fine_tune=fine_tune)
        assert set(method.own_state()) == {"keys", "values", "frequency"}
        assert all(value.isfinite().all() for value in method.own_state().values())
        other.load_own_state(method.own_state())
        features = photos(tiny_backbone, 3, seed=5)
        torch.testing.assert_close(other.eval()(features).logits, method(features).logits)
        assert len(other.learnable_parameters()) == fine_tune
    with pytest.raises(ValueError, match="wrong shapes: values"):
        other.load_own_state(method.own_state() | {"values": method.values[:, :4]})


def test_shots_keep_the_first_photos_of_each_label(tiny_backbone: TinyBackbone) -> None:
    kept = tip(tiny_backbone, shots=1)
    known = torch.where(TARGETS.isnan(), -1, TARGETS)
    torch.testing.assert_close(kept.values, known[[0, 1, 3]])  # 0 and 2; then 1 and 3; then 4; no label is new after
    assert len(tip(tiny_backbone, shots=2).values) == 4  # the last two have labels that two photos have already
    nothing = built(tiny_backbone, "tip_adapter", cache={"shots": 1})
    with pytest.raises(DatasetError, match="Tip-Adapter"):
        nothing.prepare([(photos(tiny_backbone), torch.zeros(6, 5))])
