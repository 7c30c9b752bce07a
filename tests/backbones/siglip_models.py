"""Small models of `transformers.SiglipModel` with random weights, and a tokenizer of a few words."""

import json

import torch
import torch.nn.functional as F
from hf_models import randomised
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import SiglipConfig, SiglipModel

SMALL_VISION = {"hidden_size": 96, "num_attention_heads": 3, "num_hidden_layers": 5, "intermediate_size": 200,
                "image_size": 64, "patch_size": 16}  # fmt: skip
SMALL_TEXT = {"hidden_size": 96, "num_attention_heads": 4, "num_hidden_layers": 3, "intermediate_size": 160,
              "vocab_size": 120, "max_position_embeddings": 64}  # fmt: skip
PHOTO = (2, 3, 64, 64)


def saved(folder, vision, text, **scalars):
    """Write a model to a folder as `save_pretrained` does, with `logit_scale` and `logit_bias` if given."""
    model = randomised(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))
    with torch.no_grad():
        for name, value in scalars.items():
            getattr(model, name).fill_(value)
    model.save_pretrained(folder)
    return model


def regions(model, x):
    """The query's values at each patch, by hand from the model's modules."""
    head = model.vision_model.head.attention
    hidden = model.vision_model(pixel_values=x).last_hidden_state  # behind the last norm
    width = hidden.shape[-1]
    value = F.linear(hidden, head.in_proj_weight[2 * width :], head.in_proj_bias[2 * width :])
    return F.normalize(head.out_proj(value), dim=-1)


def words_tokenizer(folder, *, pad, end, vocabulary=("a", "photo", "of", "dog", "<unk>")):
    """A word tokenizer as `tokenizer.json`, with these special tokens first."""
    ids = {token: index for index, token in enumerate(dict.fromkeys([pad, end, *vocabulary]))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"pad_token": pad, "eos_token": {"content": end}}))
    return ids
