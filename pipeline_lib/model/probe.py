"""Tries out what a language model's attention really is: which positions see which, with padding and without.

Settings that are said to make a decoder bidirectional do so in some versions of transformers and not in others, in
padded batches and not in unpadded ones. So nothing is believed: the last token of a short text is changed, and either
the first position's hidden state changes or it does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from pipeline_lib.core.errors import UserError, first_lines

LENGTH, MORE = 8, 3  # tokens of the text that is tried out, and of its padding
UNSEEN = 1e-6  # relative difference of hidden states up to which what was changed was not seen
SAME = 1e-4  # and up to which padding counts as without effect


class Attention(NamedTuple):
    """What was found."""

    causal_by_itself: bool  # as the model was made
    causal: bool  # as it runs


@torch.no_grad()
def probe_attention(module: torch.nn.Module, wanted: str, max_length: int) -> Attention:
    """Make attention what is `wanted` (`own` or `bidirectional`) and see that it is; try the full length too.

    Raises:
        UserError: It is not, padding changes what a text's tokens give, or so many tokens cannot be read.
    """
    config: Any = module.config
    by_itself = not _sees_last(module)
    if wanted == "bidirectional" and by_itself:
        config.is_causal = False
        if not _sees_last(module):
            import transformers

            raise UserError(
                f"language.attention: `bidirectional` has no effect on `{config.model_type}` in transformers "
                f"{transformers.__version__}; write own, or take another model"
            )
    _check_length(module, max_length)
    return Attention(by_itself, by_itself and wanted == "own")


def _sees_last(module: torch.nn.Module) -> bool:
    """Tell whether the first position depends on the last token, the same with padding and without."""
    size: int = module.get_input_embeddings().num_embeddings  # type: ignore[operator]
    ids = (torch.arange(LENGTH) * 7 + 11) % size
    other = torch.cat([ids[:-1], (ids[-1:] + 1) % size])
    found = []
    for padding in (0, MORE):
        first, second = (_hidden(module, text, padding) for text in (ids, other))
        found.append(_difference(first[:1], second[:1]) > UNSEEN)
    plain, padded = _hidden(module, ids, 0), _hidden(module, ids, MORE)
    if found[0] != found[1] or _difference(padded, plain) > SAME:
        raise UserError(
            "language.attention: a text gives other hidden states in a padded batch than alone "
            f"(relative difference {_difference(padded, plain):.1e}); this kind of model cannot be read here"
        )
    return found[0]


def _hidden(module: torch.nn.Module, ids: torch.Tensor, padding: int) -> torch.Tensor:
    """Return the hidden states, float32 [LENGTH, W], of one text, followed by so much padding."""
    config: Any = module.config
    device = module.get_input_embeddings().weight.device  # type: ignore[operator]
    whole = torch.cat([ids, torch.full((padding,), config.pad_token_id or 0)])[None].to(device)
    mask = (torch.arange(len(ids) + padding) < len(ids)).long()[None].to(device)
    return module(input_ids=whole, attention_mask=mask).last_hidden_state[0, : len(ids)].float()


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def _check_length(module: torch.nn.Module, max_length: int) -> None:
    config: Any = module.config
    most = getattr(config, "max_position_embeddings", max_length)
    if max_length > most:
        raise UserError(f"language.max_length: {max_length}, but the model reads {most}; lower it")
    try:
        padding = config.pad_token_id or 0  # which some models give no position
        found = _hidden(module, torch.full((max_length,), 1 if padding != 1 else 2), 0)
    except (IndexError, RuntimeError) as error:
        raise UserError(
            f"language.max_length: {max_length} tokens cannot be read ({first_lines(error)}); lower it"
        ) from error
    if not found.isfinite().all():
        raise UserError("language: the model's hidden states are not finite; check its weights")
