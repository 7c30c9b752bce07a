"""IntCLIP with a transformer over label levels (Table 3, "Multi-layer")."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fakes import TinyBackbone, tiny_taxonomy
from intclip.errors import TaxonomyError
from intclip.methods.label_transformer import LabelTransformer
from intclip.methods.registry import build_method


def test_it_starts_as_the_names_alone():
    backbone, features = TinyBackbone(), None
    outputs = []
    for option in (False, True):
        torch.manual_seed(0)
        method = build_method("intclip", backbone, tiny_taxonomy(), {"label_transformer": option, "context_length": 3})
        features = features or backbone.features(torch.randn(4, 3, 24, 24), method.needs)
        outputs.append(method(features).logits)
    torch.testing.assert_close(*outputs, atol=1e-4, rtol=0)  # cosines, 100 times, normalised once more in float32


def test_a_class_hears_of_its_ancestors_and_of_nothing_else_once_the_gate_is_open():
    torch.manual_seed(0)
    taxonomy = tiny_taxonomy()
    levels = LabelTransformer(TinyBackbone().text, taxonomy)
    features = torch.randn(2, len(taxonomy), 8)
    with torch.no_grad():
        levels.gate.fill_(0.5)
    before = levels(features)
    added = (before - F.normalize(features, dim=2)).norm(dim=2)
    torch.testing.assert_close(added, torch.full_like(added, 0.5))  # a unit vector times the gate, in both halves
    levels.level1[0] += 1
    assert not torch.allclose(levels(features), before)
    levels.layers[0].multihead_attn.out_proj.weight.data.zero_()
    levels.layers[0].multihead_attn.out_proj.bias.data.zero_()
    deaf = levels(features)
    levels.level1[0] += 1
    torch.testing.assert_close(levels(features), deaf)  # the coarser level comes in through the cross-attention alone


def test_one_level_is_refused():
    taxonomy = tiny_taxonomy()
    flat = replace(taxonomy, levels={"class": taxonomy.names}, parents={})
    with pytest.raises(TaxonomyError, match=f"taxonomy {flat.name} .*level"):
        build_method("intclip", TinyBackbone(), flat, {"label_transformer": True, "context_length": 3})
