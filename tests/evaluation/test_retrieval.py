"""Recall of caption retrieval, by hand and against a plain loop."""

import pytest
import torch
import torch.nn.functional as F

from intclip.evaluation.retrieval import retrieval_recall


def test_by_hand():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0.5, 0], [0, 0, 2]])
    owner = torch.tensor([0, 1, 1, 2])  # the third text is nearer to photo 0 than to its own
    recall = retrieval_recall(images, texts, owner)
    assert recall["text_to_image"] == pytest.approx({"R@1": 75.0, "R@5": 100.0, "R@10": 100.0})
    assert recall["image_to_text"] == pytest.approx({"R@1": 100.0, "R@5": 100.0, "R@10": 100.0})


def test_against_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 6, generator=generator), torch.randn(120, 6, generator=generator)
    owner = torch.arange(40).repeat_interleave(3)
    similarity = F.cosine_similarity(images[:, None], texts[None], dim=2)
    texts_found = sum(owner[t] in similarity[:, t].topk(5).indices for t in range(120)) / 120
    images_found = sum(bool((owner[similarity[i].topk(5).indices] == i).any()) for i in range(40)) / 40
    recall = retrieval_recall(images, texts, owner)
    assert recall["text_to_image"]["R@5"] == pytest.approx(100 * texts_found)
    assert recall["image_to_text"]["R@5"] == pytest.approx(100 * images_found)


def test_photos_without_text_are_refused():
    with pytest.raises(ValueError, match="needs a text"):
        retrieval_recall(torch.eye(3), torch.eye(3), torch.tensor([0, 0, 1]))
