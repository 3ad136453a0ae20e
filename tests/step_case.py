"""A step that tests take: a student, a batch, a teacher, draws; and its gradient by one graph and one backward."""

from pathlib import Path

import torch

from pipeline_lib import model
from pipeline_lib.core import config
from pipeline_lib.model.features import Features, Inputs
from pipeline_lib.refine import recipes
from pipeline_lib.refine.sampling import Draws

ROOT = Path(__file__).parents[1]
B = 6


def blocks():
    return config.raw_section(ROOT / "params.yaml", "recipes")


def case(directory, dtype=torch.float64):
    """A student, a batch of B pairs, a teacher that is not the student, and the draws of a step."""
    clip = model.load(directory, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (B, 3, *clip.image_size), generator=generator, dtype=torch.uint8)
    ids = clip.tokenize([f"image number {i} of a {'very ' * i}small thing" for i in range(B)])[:, :32]
    rows = [torch.randn(B, clip.embed_dim, generator=generator, dtype=dtype) for _ in range(2)]
    teacher = Features(rows[0], rows[1], torch.tensor(12.0, dtype=dtype))
    draws = Draws(seed=0, epoch=0, step=0, progress=0.0, key_digests=[bytes([i] * 16) for i in range(B)])
    return clip, Inputs(images, ids), teacher, draws


def gradients(clip):
    return {name: p.grad.clone() for name, p in clip.module.named_parameters() if p.grad is not None}


def plain_gradients(clip, recipe, inputs, teacher, draws):
    """The reference: one graph, one backward, nothing of `backward`."""
    clip.module.zero_grad(set_to_none=True)
    student = Features(clip.encode_image(inputs.images), clip.encode_text(inputs.texts), clip.logit_scale)
    recipes.total_loss(recipe(student, teacher, draws)).backward()
    return gradients(clip)


def largest_difference(found, expected, floor=1e-30):
    """Largest difference of a tensor, relative to its own largest entry."""
    assert found.keys() == expected.keys()
    return max(float((found[k] - expected[k]).abs().max() / (expected[k].abs().max() + floor)) for k in expected)
