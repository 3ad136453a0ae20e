"""transformers' image processor in the terms of open_clip's preprocess_cfg, and the other way.

What one cannot say of the other is refused by key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline_lib.base.kinds import CLIP, KINDS, Kind
from pipeline_lib.core import artifacts
from pipeline_lib.core.errors import UserError, first_lines
from pipeline_lib.core.schema import is_number

_RESAMPLING = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers
_PROCESSORS = {  # names in the file
    f"{kind.prefix}{name}": kind
    for kind in KINDS.values()
    for name in ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
}
_READ = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)
_WITHOUT_EFFECT = (  # on the pixels of one image
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "default_to_square",
    "data_format",
    "input_data_format",
    "return_tensors",
    "device",
    "disable_grouping",
    "_valid_processor_keys",
)


def read_processor(folder: Path, image_size: int, default: Kind) -> tuple[Any, dict[str, Any]]:
    """Return transformers' image processor, None without a file, and what it means as open_clip's preprocess_cfg.

    transformers itself fills in what the file leaves out and reads the older spellings; `default` is the kind where
    the file does not say its own. The processor returned works with Pillow, as open_clip does; the one of torchvision
    rounds a few pixels otherwise.
    """
    path, settings = _processor_settings(folder)
    if settings is None:
        return None, {"conventions": "transformers"}
    name = _kind(path, settings, default).image_processor
    _refuse_unknown(path, settings, name)
    import transformers

    make = getattr(transformers, f"{name}Pil", None) or getattr(transformers, name)  # 4.x
    if settings.get("do_convert_rgb", True) is None:  # as files of SigLIP have it: images are RGB already
        settings = settings | {"do_convert_rgb": True}
    try:
        processor = make.from_dict(settings)
    except Exception as error:  # its validation raises types of its own
        raise UserError(f"{path}: not the settings of a {name} ({first_lines(error)})") from error
    mean, std = _normalisation(path, processor)
    return processor, {
        "mean": mean,
        "std": std,
        "interpolation": _interpolation(path, processor),
        "resize_mode": _resize_mode(path, processor, image_size),
        "conventions": "transformers",
    }


def processor_settings(preprocess: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    """Return the settings of an image processor of that kind that does what a whole preprocess_cfg of open_clip says.

    Raises:
        UserError: There is none: another way to the model's input, another size than a square.
    """
    height, width = preprocess["size"] if isinstance(preprocess["size"], list | tuple) else [preprocess["size"]] * 2
    mode, interpolation = preprocess["resize_mode"], preprocess["interpolation"]
    resampling = {name: number for number, name in _RESAMPLING.items()}
    modes = ("shortest", "squash") if kind is CLIP else ("squash",)  # that of SigLIP does not crop
    if height != width or mode not in modes or interpolation not in resampling:
        raise UserError(
            f"preprocess_cfg: a {kind.image_processor} does not resize to {height} × {width}, {mode}, {interpolation}"
        )
    square = {"height": height, "width": width}
    return {
        "image_processor_type": kind.image_processor,
        "processor_class": kind.processor,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": height} if mode == "shortest" else square,
        "resample": resampling[interpolation],
        **({"do_center_crop": mode == "shortest", "crop_size": square} if kind is CLIP else {}),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess["mean"]),
        "image_std": list(preprocess["std"]),
    }


def _processor_settings(folder: Path) -> tuple[Path, Any]:
    """Find the image processor's settings as transformers 5 does: nested in processor_config.json, or on their own."""
    nested, alone = folder / "processor_config.json", folder / "preprocessor_config.json"
    found = artifacts.read_json(nested) if nested.is_file() else None
    if isinstance(found, dict) and "image_processor" in found:
        return nested, found["image_processor"]
    return alone, artifacts.read_json(alone) if alone.is_file() else None


def _kind(path: Path, settings: Any, default: Kind) -> Kind:
    """Tell which kind of image processor the settings are of; refuse one that is not known."""
    if not isinstance(settings, dict):
        raise UserError(f"{path}: holds no settings of an image processor")
    for key in ("image_processor_type", "feature_extractor_type"):
        if settings.get(key) not in (None, *_PROCESSORS):
            known = " and a ".join(kind.image_processor for kind in KINDS.values())
            raise UserError(f"{path}: {key} is `{settings[key]}`; only the images of a {known} are known")
    said = settings.get("image_processor_type") or settings.get("feature_extractor_type")
    return _PROCESSORS[said] if said else default


def _refuse_unknown(path: Path, settings: Mapping[str, Any], name: str) -> None:
    """Refuse settings that are not known to leave the pixels as they are."""
    for key, value in settings.items():
        if key not in _READ + _WITHOUT_EFFECT and value not in (None, False):
            raise UserError(f"{path}: `{key}` is no setting of a {name}; remove it if it changes no pixel")


def _interpolation(path: Path, processor: Any) -> str:
    if not processor.do_convert_rgb:
        raise UserError(f"{path}: do_convert_rgb is false; with true, RGB images stay the same and others work too")
    if processor.resample not in _RESAMPLING:
        raise UserError(f"{path}: resample is {processor.resample}; open_clip resizes bicubic (3) or bilinear (2)")
    return _RESAMPLING[processor.resample]


def _resize_mode(path: Path, processor: Any, image_size: int) -> str:
    """Tell which of open_clip's ways leads from any image to the model's input; both know few."""
    size, crop = (dict(given or {}) for given in (processor.size, processor.crop_size))
    square = {"height": image_size, "width": image_size}
    if not processor.do_resize:
        raise UserError(f"{path}: do_resize is false; open_clip always resizes to the model's input")
    if size == {"shortest_edge": image_size} and processor.do_center_crop and crop == square:
        return "shortest"
    if size == square and (not processor.do_center_crop or crop == square):
        return "squash"
    cropped = f"crop_size {crop}" if processor.do_center_crop else "do_center_crop false"
    raise UserError(
        f"{path}: size is {size} with {cropped}; open_clip's only ways to the model's input are a shortest "
        f"edge of {image_size} cropped to {image_size} × {image_size}, or that height and width"
    )


def _normalisation(path: Path, processor: Any) -> tuple[list[float], list[float]]:
    """Return mean and deviation as open_clip takes them, after a division by 255.

    Another factor f is folded in: (x f − m) / s = (x / 255 − m / 255f) / (s / 255f).
    """
    mean = _channels(path, "image_mean", processor.image_mean) if processor.do_normalize else [0.0] * 3
    std = _channels(path, "image_std", processor.image_std) if processor.do_normalize else [1.0] * 3
    factor = processor.rescale_factor if processor.do_rescale else 1.0
    if not is_number(factor) or factor <= 0:
        raise UserError(f"{path}: rescale_factor is {factor}, expected a positive number")
    if 0.0 in std:
        raise UserError(f"{path}: image_std holds 0, and pixels cannot be divided by it")
    scale = 1.0 if math.isclose(factor * 255, 1.0, rel_tol=1e-12) else factor * 255
    return [value / scale for value in mean], [value / scale for value in std]


def _channels(path: Path, key: str, given: Any) -> list[float]:
    values = list(given) if isinstance(given, list | tuple) else [given] * 3
    if len(values) != 3 or not all(map(is_number, values)):
        raise UserError(f"{path}: {key} is {given}, expected three finite numbers")
    return [float(value) for value in values]
