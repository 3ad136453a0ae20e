"""open_clip's evaluation transform, cut in two where pixels are uint8.

`decode` does its PIL steps in their order, `normalize` its ToTensor and Normalize on the device; both together equal
the transform bitwise. Only samples of more than eight bits, which the transform turns white or black, are scaled first.

A model that comes from transformers sees images otherwise in two points: they become RGB before they are resized, what
is transparent white, and of an odd number of pixels too many the centre crop leaves out one more at the end. Its
`preprocess_cfg` says `conventions: transformers`, which open_clip passes over, and `decode` follows them.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import open_clip
import open_clip.transform
import torch
import torchvision
from PIL import Image
from torch import nn

from pipeline_lib.core.images import to_eight_bits

CONVENTIONS = "conventions"  # a key of preprocess_cfg: absent, or `transformers`


@dataclass(frozen=True)
class Preprocess:
    """open_clip's evaluation transform, split where pixels are still uint8. Picklable, so decoders may be processes."""

    config: Mapping[str, Any]  # open_clip's preprocess_cfg, complete

    @cached_property
    def _steps(self) -> list[Any]:
        config = {key: value for key, value in self.config.items() if key != CONVENTIONS}
        steps = open_clip.transform.image_transform_v2(
            open_clip.transform.PreprocessCfg(**config), is_train=False
        ).transforms
        kinds = [type(step).__name__ for step in steps[-3:]]
        if kinds != ["MaybeConvertMode", "MaybeToTensor", "Normalize"]:
            raise RuntimeError(f"open_clip's evaluation transform ends in {kinds}; this version is not supported")
        return steps if CONVENTIONS not in self.config else _as_transformers(steps)

    @property
    def image_size(self) -> tuple[int, int]:
        """Return height and width of the model's input."""
        size = self.config["size"]
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Return an image as the model takes it, float32 [3, H, W]: what `decode` and `normalize` do, in one.

        Raises:
            ValueError: Nobody knows what its samples mean (`to_eight_bits`).
        """
        found: Any = to_eight_bits(image)
        for step in self._steps:
            found = step(found)
        return found

    def decode(self, image_bytes: bytes, max_pixels: int) -> np.ndarray:
        """Take an image file through the model's own PIL steps (resize first, RGB after); return uint8 [3, H, W].

        Raises:
            ValueError: It cannot be decoded, nobody knows what its samples mean (`to_eight_bits`), or it has, or would
                be resized to, more than `max_pixels` pixels.
        """
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own guard, raised or lowered to ours
        try:
            with Image.open(io.BytesIO(image_bytes)) as file:
                self._check_pixels(file.size, max_pixels)
                image = to_eight_bits(file)
                for step in self._steps[:-2]:
                    image = step(image)
                return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise nearly every type on a broken file
            raise ValueError(f"cannot be decoded: {str(error) or type(error).__name__}") from error

    def _check_pixels(self, size: tuple[int, int], max_pixels: int) -> None:
        width, height = size
        if min(size) == 0:
            raise ValueError(f"{width}x{height} pixels")
        scale = max(self.image_size[0] / height, self.image_size[1] / width)
        resized = width * height * scale**2 if self.config["resize_mode"] == "shortest" else 0
        if max(width * height, resized) > max_pixels:
            raise ValueError(f"{width}x{height} pixels are too many (limit {max_pixels}, also after resizing)")

    def normalize(self, pixels: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Return what ToTensor and Normalize give for uint8 [B, 3, H, W], bitwise, on the device of `pixels`.

        Computed in float32 as the transform does, then cast to `dtype`. The divisor is a tensor because CUDA
        multiplies by the rounded reciprocal of a plain number.
        """
        if pixels.dtype != torch.uint8 or pixels.ndim != 4:
            raise ValueError(f"expected uint8 pixels [B, 3, H, W], got {pixels.dtype} {tuple(pixels.shape)}")

        def constant(values: list[float]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.float32, device=pixels.device).view(-1, 1, 1)

        scaled = pixels.to(torch.float32).div_(constant([255.0]))
        return scaled.sub_(constant(self.config["mean"])).div_(constant(self.config["std"])).to(dtype)


def _as_transformers(steps: list[Any]) -> list[Any]:
    """Put the PIL steps in transformers' order, and crop as it does."""
    *resizing, _, to_tensor, normalize = steps
    cropping = [
        functools.partial(_crop, size=step.size) if isinstance(step, torchvision.transforms.CenterCrop) else step
        for step in resizing
    ]
    return [_on_white, *cropping, to_tensor, normalize]


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = size
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def preprocess_config(module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return open_clip's preprocess_cfg with every key, and the conventions that `given`, the file's own, adds."""
    config = asdict(open_clip.transform.PreprocessCfg()) | open_clip.get_model_preprocess_cfg(module)
    config |= {key: given[key] for key in (CONVENTIONS,) if key in given}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
