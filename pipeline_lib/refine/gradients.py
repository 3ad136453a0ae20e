"""Exact gradients of a whole batch: gradient caching, data parallelism.

`backward` has three phases, the same for one process or many, one chunk or several:

1. embed this process's rows in chunks of `micro_batch` (without gradient when there is more than one chunk);
2. gather the features of all processes, evaluate the recipe on the whole batch, and take the gradient with respect to
   this process's features (gradient caching, Gao et al. 2021, arXiv 2101.06983);
3. send that gradient back through the towers, chunk by chunk, and sum the parameter gradients over the processes.

So negatives and soft labels span the whole batch whatever its layout. The logit scale enters in phase 2 only, which
every process evaluates alike: its gradient is taken once and not summed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from pipeline_lib.core import runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.model import SCALARS, Clip
from pipeline_lib.model.embed import cut_length
from pipeline_lib.model.features import Features, Inputs
from pipeline_lib.refine import recipes
from pipeline_lib.refine.sampling import Draws


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The student's towers as the loop calls them: plain or compiled, in fp32, tf32 or bf16 (`runtime.arithmetic`)."""

    student: Clip
    precision: str = "fp32"
    compile: bool = False
    text_groups: int = 1  # texts are sorted by length into so many groups, each cut at its own longest

    @cached_property
    def _calls(self) -> tuple[Callable[..., torch.Tensor], Callable[..., torch.Tensor]]:
        calls = (self.student.encode_image, self.student.encode_text)
        if not self.compile:
            return calls
        _ = self.student.text_cut_refusal  # found now, for what finds it breaks a compiled graph
        return torch.compile(calls[0]), torch.compile(calls[1])

    def __call__(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed b pairs: raw image and text features [b, D], at least fp32."""
        device = self.student.device
        with runtime.arithmetic(self.precision, device):
            images = inputs.images.to(device, non_blocking=True)
            image = images if images.is_floating_point() else self._calls[0](images)
            text = self._encode_texts(inputs.texts.to(device, non_blocking=True))
        image, text = (x.float() if x.dtype in (torch.bfloat16, torch.float16) else x for x in (image, text))
        return image, text

    def _encode_texts(self, texts: torch.Tensor) -> torch.Tensor:
        """Embed texts; token ids in groups by length where that is asked for, as most are shorter than the longest."""
        encode = self._calls[1]
        if self.text_groups == 1 or self.student.text_cut_refusal or texts.is_floating_point():
            return encode(texts)
        lengths = self.student.text_lengths(texts)
        order = lengths.argsort(stable=True)
        groups = [rows for rows in order.tensor_split(self.text_groups) if len(rows)]
        cut = [texts[rows, : cut_length(lengths[rows], texts.shape[1], 1)] for rows in groups]
        return torch.cat([encode(some) for some in cut])[order.argsort()]

    def send_back(self, outputs: Iterable[torch.Tensor], gradients: Iterable[torch.Tensor | None]) -> None:
        """Add the gradient of `sum(outputs * gradients)` to the weights, in the precision of the forward pass.

        A locked tower takes none; where the gradient is None, which the loss does not use, the weights keep None.
        """
        both = zip(outputs, gradients, strict=True)
        pairs = [(output, gradient) for output, gradient in both if output.requires_grad and gradient is not None]
        if pairs:
            with runtime.tf32(self.precision == "tf32"):  # autocast remembers the types of its forward pass
                torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])


def backward(
    encoders: Encoders,
    recipe: recipes.Recipe,
    inputs: Inputs,
    teacher: Features,
    draws: Draws,
    *,
    micro_batch: int | None = None,
    world: World = World(),  # noqa: B008
) -> recipes.Terms:
    """Leave in every trainable parameter the gradient of the recipe's total over the whole batch of B pairs.

    A parameter that the total does not depend on is left with None.

    Args:
        encoders: The student.
        recipe: From `recipes.make_recipe`.
        inputs: This process's b rows of the batch, `world.own_rows(B)`.
        teacher: Features of all B pairs.
        draws: Random numbers of all B pairs.
        micro_batch: Rows per forward pass (None: b). The gradient does not depend on it.
        world: All processes.

    Returns:
        The recipe's terms, detached, equal on every process.
    """
    student = encoders.student
    size = micro_batch or len(inputs.images)
    chunks = [Inputs(*pair) for pair in zip(*(x.split(size) for x in inputs), strict=True)]
    own, states = _embed(encoders, chunks)
    leaves = [rows.detach().requires_grad_() for rows in own]
    image, text = (_gather(leaf, len(draws.key_digests), world) for leaf in leaves)
    terms = recipe(Features(image, text, student.logit_scale), teacher, draws)
    recipes.total_loss(terms).backward()
    if len(chunks) == 1:
        encoders.send_back(own, [leaf.grad for leaf in leaves])
    else:
        split = [[None] * len(chunks) if leaf.grad is None else leaf.grad.split(size) for leaf in leaves]
        _embed_again_and_send_back(encoders, chunks, states, split)
    world.sum_gradients(p for name, p in student.module.named_parameters() if name not in SCALARS)
    return {name: term.detach() for name, term in terms.items()}


def _embed(encoders: Encoders, chunks: Sequence[Inputs]) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Embed both sides, with their graph if there is one chunk; also return the random state before each chunk."""
    embedded, states = [], []
    with torch.set_grad_enabled(len(chunks) == 1):
        for chunk in chunks:
            states.append(_random_state(encoders.student.device))
            embedded.append(encoders(chunk))
    if len(chunks) == 1:
        return list(embedded[0]), states
    return [torch.cat(rows) for rows in zip(*embedded, strict=True)], states


def _gather(leaf: torch.Tensor, num_rows: int, world: World) -> torch.Tensor:
    """Join the rows of all processes; this one's are `leaf`, so that gradients reach it."""
    parts = world.gather_rows(leaf.detach(), num_rows)
    parts[world.rank] = leaf
    return torch.cat(parts)


def _embed_again_and_send_back(
    encoders: Encoders,
    chunks: Sequence[Inputs],
    states: Sequence[list[torch.Tensor]],
    gradients: Sequence[Sequence[torch.Tensor | None]],
) -> None:
    """Run a second forward pass with the random numbers of the first; the generators end where they were."""
    device = encoders.student.device
    after = _random_state(device)
    for chunk, state, *rows in zip(chunks, states, *gradients, strict=True):
        _set_random_state(device, state)
        encoders.send_back(encoders(chunk), rows)
    _set_random_state(device, after)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    """Return the state of the generators that dropout uses, so that the second pass repeats the first."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_state(device: torch.device, state: list[torch.Tensor]) -> None:
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)
