"""Prompts, region pooling, aggregation and trainable copies against slow references."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fakes import TinyBackbone, TinyText
from intclip.errors import TaxonomyError
from intclip.labels.taxonomy import Taxonomy
from intclip.methods.aggregation import GatedAttention, SightAssistedAggregation
from intclip.methods.base import Output
from intclip.methods.branches import Branch
from intclip.methods.prompts import NEGATIVE, POSITIVE, PromptLearner, PromptOptions
from intclip.methods.region_pooling import HALVES_PREFIX, PoolingOptions, RegionPooling, pool_similarities

ATTENTIVE = ["paper", "released", "cross_attention", "symmetric"]
VARIANTS = [*ATTENTIVE, "sum", "concat_mlp", "sight"]


def count_calls(text: TinyText) -> list[int]:
    """Record batch sizes of calls of the text encoder from now on."""
    sizes: list[int] = []
    encode = text.encode_embeddings

    def counted(embeddings: Tensor, lengths: Tensor) -> Tensor:
        sizes.append(len(embeddings))
        return encode(embeddings, lengths)

    text.encode_embeddings = counted
    return sizes


@pytest.mark.parametrize("class_specific", [True, False])
def test_prompts_stand_between_start_and_sentence(
    tiny_backbone: TinyBackbone, five_classes: Taxonomy, class_specific: bool
) -> None:
    text, sentences = tiny_backbone.text, five_classes.sentences("11-15")
    prompts = PromptLearner(text, sentences, PromptOptions(context_length=4, class_specific=class_specific))
    assert prompts.context.shape == (2, 5 if class_specific else 1, 4, text.width)
    features = prompts(text)
    assert features.shape == (2, 5, 8)
    for half in (NEGATIVE, POSITIVE):
        for k, sentence in enumerate(sentences):
            embedded = text.embed(text.tokenize([sentence]))[0]
            context = prompts.context[half, k if class_specific else 0]
            alone = torch.cat([embedded[:1], context, embedded[1:]])
            expected = text.encode_embeddings(alone[None], torch.tensor([len(alone)]))[0]
            torch.testing.assert_close(features[half, k], expected)


def test_no_context_is_the_plain_sentence(tiny_backbone: TinyBackbone, five_classes: Taxonomy) -> None:
    sentences = five_classes.sentences("11-15")
    prompts = PromptLearner(tiny_backbone.text, sentences, PromptOptions(context_length=0), halves=1)
    expected = tiny_backbone.encode_text(tiny_backbone.tokenize(sentences))
    torch.testing.assert_close(prompts(tiny_backbone.text)[0], expected)


def test_both_halves_go_through_the_encoder_in_one_batch_as_long_as_the_longest_prompt(
    tiny_backbone: TinyBackbone, five_classes: Taxonomy
) -> None:
    text, sentences = tiny_backbone.text, five_classes.sentences("11-15")
    prompts = PromptLearner(text, sentences, PromptOptions(context_length=3))
    sizes = count_calls(text)
    prompts(text)
    assert sizes == [10]
    assert prompts.embeddings()[0].shape[1] == max(len(s.split()) for s in sentences) + 2 + 3


def test_text_features_are_kept_in_evaluation_until_the_context_changes(
    tiny_backbone: TinyBackbone, five_classes: Taxonomy
) -> None:
    text = tiny_backbone.text
    prompts = PromptLearner(text, five_classes.sentences("fine"), PromptOptions(context_length=2)).eval()
    sizes = count_calls(text)
    first = prompts(text)
    assert prompts(text) is first
    assert len(sizes) == 1
    assert not first.requires_grad
    prompts.context.data.add_(0.5)  # not detected by autograd's version counter
    changed = prompts(text)
    assert len(sizes) == 2
    assert not torch.equal(changed, first)
    prompts.load_state_dict({"context": prompts.context - 0.5})
    torch.testing.assert_close(prompts(text), first)
    assert len(sizes) == 3
    prompts.train()
    assert prompts(text).requires_grad
    assert prompts(text) is not prompts(text)
    assert len(sizes) == 6
    torch.testing.assert_close(copy.deepcopy(prompts.eval())(text), first)
    text.double()
    torch.testing.assert_close(prompts.double()(text), first.double(), rtol=1e-5, atol=1e-6)


def test_only_the_context_is_stored_and_trained(tiny_backbone: TinyBackbone, five_classes: Taxonomy) -> None:
    prompts = PromptLearner(tiny_backbone.text, five_classes.sentences("fine"), PromptOptions(context_length=2))
    assert list(prompts.state_dict()) == ["context"]
    assert [name for name, _ in prompts.named_parameters()] == ["context"]


def test_contexts_may_learn_at_some_steps_only(tiny_backbone: TinyBackbone, five_classes: Taxonomy) -> None:
    text = tiny_backbone.text
    prompts = PromptLearner(text, five_classes.sentences("fine"), PromptOptions(context_length=2), every=3)
    sizes = count_calls(text)
    learns = []
    for step in range(7):
        prompts.before_step(step)
        features = prompts(text)
        learns.append(features.requires_grad)
        torch.testing.assert_close(features, prompts.encode(text))
        if learns[-1]:
            prompts.context.data.add_(0.1)
    assert learns == [True, False, False] * 2 + [True]
    assert len(sizes) == 7 + 3 + 2  # the comparison's own calls; training steps; the first call after each change


def test_a_text_residual_moves_each_class_alone(tiny_backbone: TinyBackbone, five_classes: Taxonomy) -> None:
    text = tiny_backbone.text
    prompts = PromptLearner(
        text, five_classes.sentences("fine"), PromptOptions(context_length=2), residual=True, every=2
    )
    assert prompts.residual is not None
    torch.testing.assert_close(prompts(text), torch.nn.functional.normalize(prompts.encode(text), dim=2))
    prompts.before_step(1)
    prompts(text)[1, 3].sum().backward()
    assert prompts.context.grad is None
    expected = torch.zeros_like(prompts.residual)
    expected[1, 3] = 1
    torch.testing.assert_close(prompts.residual.grad, expected)


def test_a_sentence_without_room_is_named(tiny_backbone: TinyBackbone) -> None:
    with pytest.raises(TaxonomyError, match=r"'a b c d'.*\b6 .*20.*4"):
        PromptLearner(tiny_backbone.text, ["a b", "a b c d"], PromptOptions(context_length=20))
    with pytest.raises(TaxonomyError, match=r"30.*\b0\b"):
        PromptLearner(tiny_backbone.text, ["a b"], PromptOptions(context_length=30))


def slow_logits(regions: Tensor, text: Tensor, scale: float, logit_scale: float, pooling: str) -> Tensor:
    images, classes = len(regions), text.shape[1]
    flat = regions.flatten(2)
    out = torch.zeros(images, classes)
    for b in range(images):
        for k in range(classes):
            s = torch.zeros(2, flat.shape[2])
            for half in range(2):
                for n in range(flat.shape[2]):
                    s[half, n] = scale * F.cosine_similarity(flat[b, :, n], text[half, k], dim=0)
            if pooling == "class_specific":
                w = [math.exp(v) for v in s[POSITIVE].tolist()]
                weights = torch.tensor([v / sum(w) for v in w])
            elif pooling == "mean":
                weights = torch.full((flat.shape[2],), 1 / flat.shape[2])
            else:
                weights = F.one_hot(s[POSITIVE].argmax(), flat.shape[2]).float()
            z = logit_scale * (s * weights).sum(dim=1)
            # p = softmax over (negative, positive), positive part; its logit is the difference.
            out[b, k] = torch.logit(torch.softmax(z.double(), dim=0)[POSITIVE]).float()
    return out


@pytest.mark.parametrize("pooling", ["class_specific", "mean", "max"])
def test_region_pooling_equals_a_loop(pooling: str) -> None:
    torch.manual_seed(0)
    regions, text = torch.randn(2, 8, 3, 2), torch.randn(2, 4, 8)
    module = RegionPooling(PoolingOptions(pooling=pooling, similarity_scale=7, logit_scale=0.6), classes=4)
    expected = slow_logits(regions, text, 7, 0.6, pooling)
    torch.testing.assert_close(module(regions, text), expected, rtol=1e-4, atol=1e-4)


def test_equal_regions_pool_to_their_own_logit_and_the_map_shows_it() -> None:
    torch.manual_seed(0)
    region, text = torch.randn(1, 8, 1, 1), torch.randn(2, 4, 8)
    for pooling in ("class_specific", "mean", "max"):
        for mean_region in (False, True):
            module = RegionPooling(PoolingOptions(pooling=pooling, mean_region=mean_region, bias=True), classes=4)
            assert module.bias is not None
            nn.init.normal_(module.bias)
            logits = module(region.expand(-1, -1, 3, 3), text)
            maps = module.map(region.expand(-1, -1, 3, 3), text)
            assert maps.shape == (1, 4, 3, 3)
            torch.testing.assert_close(logits[..., None, None].expand_as(maps), maps)
            shown = Output(logits)
            module.show(shown, "x", region.expand(-1, -1, 3, 3), text)
            torch.testing.assert_close(shown.maps["x"], maps)
            halves = shown.extras[HALVES_PREFIX + "x"]
            difference = 5 * (halves[:, POSITIVE] - halves[:, NEGATIVE])
            torch.testing.assert_close(difference + module.bias[:, None, None], maps)
            cosine = F.cosine_similarity(region.flatten(1)[:, None], text.flatten(0, 1)[None], dim=2).view(2, 4)
            torch.testing.assert_close(logits[0], 100 * (cosine[1] - cosine[0]) + module.bias, rtol=1e-4, atol=1e-4)


def test_the_mean_region_counts_as_one_more() -> None:
    torch.manual_seed(0)
    regions, text = torch.randn(2, 8, 2, 2), torch.randn(2, 3, 8)
    flat = regions.flatten(2)
    with_mean = torch.cat([flat, flat.mean(dim=2, keepdim=True)], dim=2).unsqueeze(-1)
    options = PoolingOptions()
    got = RegionPooling(options.model_copy(update={"mean_region": True}), 3)(regions, text)
    torch.testing.assert_close(got, RegionPooling(options, 3)(with_mean, text))
    mean = regions.flatten(2).mean(dim=2, keepdim=True)
    torch.testing.assert_close(RegionPooling(options, 3)(regions, text, mean), got)  # as a further region


def test_sharp_weights_are_the_maximum_and_flat_ones_the_mean() -> None:
    torch.manual_seed(0)
    similarities = torch.randn(2, 2, 3, 9)
    sharp = pool_similarities(1e4 * similarities, "class_specific") / 1e4
    torch.testing.assert_close(sharp, pool_similarities(similarities, "max"), rtol=1e-3, atol=1e-3)
    flat = pool_similarities(1e-4 * similarities, "class_specific") * 1e4
    torch.testing.assert_close(flat, pool_similarities(similarities, "mean"), rtol=1e-3, atol=1e-3)


def test_learned_scales_start_at_the_fixed_ones() -> None:
    torch.manual_seed(0)
    regions, text = torch.randn(2, 8, 2, 2), torch.randn(2, 3, 8)
    learned = RegionPooling(PoolingOptions(learn_scales=True), 3)
    torch.testing.assert_close(learned(regions, text), RegionPooling(PoolingOptions(), 3)(regions, text))
    learned(regions, text).square().sum().backward()
    assert learned.log_scales is not None
    assert learned.log_scales.grad is not None
    assert (learned.log_scales.grad != 0).all()


def slow_attention(module: nn.Module, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """α · v(values) Aᵀ for one image (D, N), position by position."""
    wq, wk, wv = (layer.weight.squeeze(-1) for layer in (module.query, module.key, module.value))
    bq, bk, bv = module.query.bias, module.key.bias, module.value.bias
    out = torch.zeros_like(values)
    for i in range(queries.shape[1]):
        q = wq @ queries[:, i] + bq
        scores = torch.stack([q @ (wk @ keys[:, j] + bk) * module.scale for j in range(keys.shape[1])])
        weights = scores.exp() / scores.exp().sum()
        for j in range(values.shape[1]):
            out[:, i] += weights[j] * (wv @ values[:, j] + bv)
    return module.alpha * out


@pytest.mark.parametrize(("dim", "inner"), [(4, 1), (8, 1), (16, 2), (512, 64)])
def test_queries_and_keys_have_an_eighth_of_the_channels(dim: int, inner: int) -> None:
    plain, scaled = GatedAttention(dim, scaled=False), GatedAttention(dim, scaled=True)
    assert (plain.query.out_channels, plain.key.out_channels, plain.value.out_channels) == (inner, inner, dim)
    assert (plain.scale, scaled.scale) == (1, inner**-0.5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_aggregation_equals_a_loop(variant: str) -> None:
    torch.manual_seed(0)
    module = SightAssistedAggregation(16, variant=variant)
    for part in (module.attention, module.reverse):
        if part is not None:
            nn.init.constant_(part.alpha, 0.7)
    semantic, sight = torch.randn(2, 16, 2, 3), torch.randn(2, 16, 2, 3)
    got = module(semantic, sight)
    assert got.shape == semantic.shape
    for b in range(2):
        s, v = semantic[b].flatten(1), sight[b].flatten(1)
        if variant == "paper":
            expected = slow_attention(module.attention, s, s, v) + v
        elif variant == "released":
            expected = slow_attention(module.attention, s, s, v) + (s + v) / 2
        elif variant == "cross_attention":
            expected = slow_attention(module.attention, s, v, v) + s
            assert module.attention.scale == pytest.approx(2**-0.5)
        elif variant == "symmetric":
            there = slow_attention(module.attention, s, v, v) + s
            expected = (there + slow_attention(module.reverse, v, s, s) + v) / 2
        elif variant == "concat_mlp":
            first, _, last = module.mlp
            stacked = torch.cat([s, v])
            hidden = (first.weight.squeeze(-1) @ stacked + first.bias[:, None]).clamp_min(0)
            expected = last.weight.squeeze(-1) @ hidden + last.bias[:, None]
        else:
            expected = s + v if variant == "sum" else v
        torch.testing.assert_close(got[b].flatten(1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ATTENTIVE)
def test_before_alpha_moves_the_residual_is_all(variant: str) -> None:
    torch.manual_seed(0)
    semantic, sight = torch.randn(2, 16, 2, 3), torch.randn(2, 16, 2, 3)
    mean = (semantic + sight) / 2
    expected = {"paper": sight, "released": mean, "cross_attention": semantic, "symmetric": mean}[variant]
    got, attention = SightAssistedAggregation(16, variant=variant).attend(semantic, sight)
    torch.testing.assert_close(got, expected)
    assert attention is not None
    assert attention.shape == (2, 6, 6)
    torch.testing.assert_close(attention.sum(dim=-1), torch.ones(2, 6))


def test_symmetric_is_symmetric() -> None:
    torch.manual_seed(0)
    module = SightAssistedAggregation(16, variant="symmetric")
    nn.init.constant_(module.attention.alpha, 0.3)
    module.reverse.load_state_dict(module.attention.state_dict())
    semantic, sight = torch.randn(2, 16, 2, 3), torch.randn(2, 16, 2, 3)
    torch.testing.assert_close(module(semantic, sight), module(sight, semantic))


def test_parameter_count_of_the_paper() -> None:
    parameters = SightAssistedAggregation(512, variant="paper").parameters()
    assert sum(p.numel() for p in parameters) == 328_321


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ValueError, match="paper, released"):
        SightAssistedAggregation(8, variant="papre")


def test_a_branch_is_a_trainable_copy_with_fixed_statistics(tiny_backbone: TinyBackbone) -> None:
    branch = Branch(tiny_backbone.deep)
    x = torch.randn(2, 6, 6, 6)
    torch.testing.assert_close(branch.train()(x), tiny_backbone.deep(x))
    before = {name: value.clone() for name, value in branch.named_buffers()}
    branch(x).square().sum().backward()
    for name, value in branch.named_buffers():
        torch.testing.assert_close(value, before[name])
    assert all(p.requires_grad and p.grad is not None for p in branch.parameters())
    with torch.no_grad():
        for p in branch.parameters():
            p += 1
    assert all(not p.requires_grad for p in tiny_backbone.deep.parameters())
    assert not torch.equal(branch(x), tiny_backbone.deep(x))
