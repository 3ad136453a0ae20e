"""The kinds of dual encoders that transformers and open_clip both have, with transformers' names of their parts."""

from __future__ import annotations

from typing import Any, NamedTuple

from pipeline_lib import model
from pipeline_lib.base import names


class Kind(NamedTuple):
    """One of them."""

    prefix: str  # of transformers' classes
    table: names.Table

    @property
    def model(self) -> str:
        """Return the name of the model's class."""
        return f"{self.prefix}Model"

    @property
    def config(self) -> str:
        """Return the name of its configuration's class."""
        return f"{self.prefix}Config"

    @property
    def processor(self) -> str:
        """Return the name of the class that prepares images and texts."""
        return f"{self.prefix}Processor"

    @property
    def image_processor(self) -> str:
        """Return the name of the class that prepares images."""
        return f"{self.prefix}ImageProcessor"


CLIP = Kind("CLIP", names.CLIP)
SIGLIP = Kind("Siglip", names.SIGLIP)
KINDS = {"clip": CLIP, "siglip": SIGLIP}  # by `model_type` of config.json


def kind_of(clip: model.Clip) -> Kind:
    """Return of which kind `clip` would be in transformers, if of any."""
    return SIGLIP if model.pools_by_attention(clip) else CLIP


def text_sizes(text: Any) -> dict[str, Any]:
    """Return the sizes in transformers' text_config under the names of open_clip's text_cfg: those of either kind."""
    return {
        "context_length": text.max_position_embeddings,
        "vocab_size": text.vocab_size,
        "layers": text.num_hidden_layers,
        "width": text.hidden_size,
        "heads": text.num_attention_heads,
        "mlp_ratio": text.intermediate_size / text.hidden_size,
    }
