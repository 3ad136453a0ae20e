"""The script inside the MLflow model: images and texts in, embeddings or class probabilities out.

MLflow copies this file into the model and runs it wherever the model is loaded, so it needs nothing of this package:
open_clip, torch, Pillow, pandas and mlflow, and transformers where a language model reads the texts. Weights are
safetensors beside it; nothing is pickled.

Input    columns `image` (bytes of an image file, or base64 of them) and/or `text`; a row may leave one of them empty or
         null. JSON comes in any of MLflow's forms: dataframe_split, dataframe_records, instances, inputs.
Params   classes      names to choose from: the images are classified instead of embedded
         templates    prompts with {} for the class name; their embeddings are averaged
         normalize    embeddings of unit length (default), or the model's raw features
Output   `image_embedding` and/or `text_embedding`; with classes `label` and `probabilities`, in the order of `classes`:
         softmax of logit scale x cosine (a logit bias is the same for every class and cancels)
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlflow
import open_clip
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from safetensors.torch import load_file

LIMITS = {"batch_size": 64, "max_image_bytes": 50_000_000, "max_image_pixels": 100_000_000}  # `model_config` overrides


class ServedClip(mlflow.pyfunc.PythonModel):
    """An open_clip folder behind MLflow's `predict`."""

    def load_context(self, context: Any) -> None:
        """Load the folder that was logged as artifact `clip`."""
        self.limits = {**LIMITS, **(context.model_config or {})}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        folder = context.artifacts["clip"]
        self.model, self.preprocess = _load(folder)
        self.model.to(self.device).eval()
        self.size = self.model.visual.preprocess_cfg["size"]
        if "text_side" in _config(folder):
            self.encode_texts: Callable[[Sequence[str]], torch.Tensor] = LanguageTexts(
                folder, context.model_config["texts"], self.device
            )
            return
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        if _conventions(folder) and hasattr(self.tokenizer, "clean_fn"):
            self.tokenizer.clean_fn = str
        self.encode_texts = lambda some: self.model.encode_text(self.tokenizer(list(some)).to(self.device))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Embed or classify the rows of `model_input`; see the top of this file.

        Raises:
            MlflowException: The request cannot be answered (a server says 400): no column, an image that is broken or
                too large, a template without {}.
        """
        params = params or {}
        images, texts = (_given(model_input, name) for name in ("image", "text"))
        images = {row: _image_file(value) for row, value in images.items()}
        classes, templates = list(params.get("classes", [])), list(params.get("templates", []))
        if not images and not texts:
            raise _refuse("no `image` and no `text` in any row")
        if classes:
            return self._classify(model_input, images, texts, classes, templates)
        unit = bool(params.get("normalize", True))
        columns = {}
        if "image" in model_input:
            columns["image_embedding"] = self._spread(model_input, images, self.embed_images, unit)
        if "text" in model_input:
            columns["text_embedding"] = self._spread(model_input, texts, self.embed_texts, unit)
        return pd.DataFrame(columns, index=model_input.index)

    def embed_images(self, images: Sequence[bytes]) -> torch.Tensor:
        """Embed image files: raw features [N, D]."""
        return self._batched(
            images, lambda some: self.model.encode_image(torch.stack([*map(self._pixels, some)]).to(self.device))
        )

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts: raw features [N, D]."""
        return self._batched(texts, self.encode_texts)

    def class_directions(self, classes: Sequence[str], templates: Sequence[str]) -> torch.Tensor:
        """Return unit vectors [K, D]: the mean of each class's unit prompt features."""
        if not templates or any(template.count("{}") != 1 for template in templates):
            raise _refuse("params: each of `templates` needs {} once, for the class name")
        prompts = [template.replace("{}", name) for name in classes for template in templates]
        features = _unit(self.embed_texts(prompts)).unflatten(0, (len(classes), len(templates)))
        return _unit(features.mean(dim=1))

    def _classify(
        self,
        model_input: pd.DataFrame,
        images: dict[int, bytes],
        texts: dict[int, str],
        classes: list[str],
        templates: list[str],
    ) -> pd.DataFrame:
        if texts or len(images) < len(model_input):
            raise _refuse("params: `classes` chooses a name for images: every row needs `image`, and none `text`")
        features = _unit(self.embed_images(list(images.values())))
        logits = self.model.logit_scale.exp().cpu() * features @ self.class_directions(classes, templates).T
        probabilities = logits.softmax(dim=1)
        labels = [classes[best] for best in probabilities.argmax(dim=1).tolist()]
        return pd.DataFrame({"label": labels, "probabilities": probabilities.tolist()}, index=model_input.index)

    def _spread(
        self,
        model_input: pd.DataFrame,
        given: dict[int, Any],
        embed: Callable[[Sequence[Any]], torch.Tensor],
        unit: bool,
    ) -> list[list[float] | None]:
        """Return embeddings at the rows that have something to embed."""
        column: list[list[float] | None] = [None] * len(model_input)
        features = embed(list(given.values())) if given else torch.empty(0, 0)
        for row, values in zip(given, (_unit(features) if unit else features).tolist(), strict=True):
            column[row] = values
        return column

    def _batched(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], torch.Tensor]) -> torch.Tensor:
        size = self.limits["batch_size"]
        with torch.inference_mode():
            return torch.cat([encode(items[at : at + size]).float().cpu() for at in range(0, len(items), size)])

    def _pixels(self, data: bytes) -> torch.Tensor:
        """Read an image file by the model's own preprocessing; its size is known before it is decoded."""
        if len(data) > self.limits["max_image_bytes"]:
            raise _refuse(f"image: {len(data)} bytes are too many (limit {self.limits['max_image_bytes']})")
        try:
            with Image.open(io.BytesIO(data)) as image:
                self._check_size(*image.size)
                if image.mode == "F" or image.mode.startswith("I"):  # the model's transform would see white
                    raise _refuse("image: its samples have more than 8 bits; send it in 8 bits")
                return self.preprocess(image)
        except (MlflowException, MemoryError):
            raise
        except Exception as error:  # Pillow's decoders raise nearly every type on a broken file
            raise _refuse(f"image: cannot be decoded ({type(error).__name__}: {error})") from error

    def _check_size(self, width: int, height: int) -> None:
        """Check what the file says and what it is resized to (an image of 1 x 100000 grows) against the limit."""
        target = (self.size, self.size) if isinstance(self.size, int) else self.size
        scale = max(target[0] / max(height, 1), target[1] / max(width, 1), 1.0)
        if width * height * scale**2 > self.limits["max_image_pixels"]:
            raise _refuse(f"image: {width}x{height} pixels are too many (limit {self.limits['max_image_pixels']})")


class LanguageTexts:
    """Texts through a language model and an adapter: raw features [N, D]; see pipeline_lib.model.joined."""

    def __init__(self, folder: str, reading: dict[str, Any], device: torch.device) -> None:
        """Load both from `folder`; `reading` is what pipeline_lib.export.without_package says of it."""
        import transformers

        place = str(Path(folder, "language"))
        self.reading, self.device = reading, device
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(place)
        self.module = transformers.AutoModel.from_pretrained(place, dtype=torch.float32).to(device).eval()
        if reading["bidirectional"]:
            self.module.config.is_causal = False
        self.weights = {name: tensor.to(device) for name, tensor in _weights(folder).items()}

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """Embed texts, those of a call in one batch."""
        read = self.reading
        whole = self.tokenizer([read["lead"] + text for text in texts], add_special_tokens=False)["input_ids"]
        own = [ids[: read["room"]] for ids in whole]
        rows = [[*read["before"], *ids, *read["after"]] for ids in own]
        pooled = [[*read["pools_before"], *[True] * len(ids), *read["pools_after"]] for ids in own]
        if not all(map(any, pooled)):
            raise _refuse("text: one of them gives no token")
        ids = self._padded(rows, read["padding"])
        mask = self._padded([[1] * len(row) for row in rows], 0)
        states = self.module(input_ids=ids, attention_mask=mask).last_hidden_state
        if read["pooling"] == "last":
            pooled = [[True] * len(row) for row in rows]
        return self._adapt(self._pool(states, self._padded(pooled, False)))

    def _padded(self, rows: list[list[Any]], padding: Any) -> torch.Tensor:
        length = max(map(len, rows))
        return torch.tensor([[*row, *[padding] * (length - len(row))] for row in rows], device=self.device)

    def _pool(self, states: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        if self.reading["pooling"] == "cls":
            return states[:, 0]
        kept = [row[own] for row, own in zip(states, pooled, strict=True)]
        return torch.stack([row[-1] if self.reading["pooling"] == "last" else row.mean(0) for row in kept])

    def _adapt(self, x: torch.Tensor) -> torch.Tensor:
        depth = self.reading["depth"]
        if not depth:
            return torch.nn.functional.linear(x, self.weights["text.adapter.proj.weight"])
        x = _unit(x)
        for block in range(depth):
            inner = self._linear(self._norm(x, f"blocks.{block}.norm"), f"blocks.{block}.widen")
            x = x + self._linear(torch.nn.functional.gelu(inner), f"blocks.{block}.narrow")
        return self._linear(self._norm(x, "norm"), "proj")

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.linear(x, *self._part(name))

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], *self._part(name))

    def _part(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weights[f"text.adapter.{name}.weight"], self.weights[f"text.adapter.{name}.bias"]


def _weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder, "open_clip_model.safetensors"))


def _conventions(folder: str) -> str | None:
    """Return whose conventions the folder follows if not open_clip's (see pipeline_lib.model.preprocess)."""
    return (_config(folder).get("preprocess_cfg") or {}).get("conventions")


def _config(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "open_clip_config.json").read_text(encoding="utf-8"))


def _as_transformers(preprocess: Any) -> Callable[[Image.Image], torch.Tensor]:
    """Put the steps of open_clip's transform in transformers' order, and crop as it does."""
    *resizing, _, to_tensor, normalize = preprocess.transforms

    def apply(image: Image.Image) -> torch.Tensor:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
        for step in resizing:
            image = _crop(image, *step.size) if type(step).__name__ == "CenterCrop" else step(image)
        return normalize(to_tensor(image))

    return apply


def _crop(image: Image.Image, height: int, width: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _load(folder: str) -> tuple[Any, Any]:
    """Load model and evaluation transform; towers that the folder's config.json describes find it here."""
    config = _config(folder)
    image_config, text_config = (config["model_cfg"][key] for key in ("vision_cfg", "text_cfg"))
    options = {}
    if text_config.get("hf_model_name"):
        options["text_cfg"] = {**text_config, "hf_model_name": folder, "hf_model_pretrained": False}
    described = Path(folder, "config.json")
    elsewhere = (image_config.get("timm_model_name") or "").startswith(("local-dir:", "hf-hub:"))
    if elsewhere and described.is_file() and "architecture" in json.loads(described.read_text(encoding="utf-8")):
        options["vision_cfg"] = {**image_config, "timm_model_name": f"local-dir:{folder}"}
    whole = "text_side" not in config
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}", load_weights=whole, **options)
    if not whole:
        weights = _weights(folder)
        model.visual.load_state_dict({name[7:]: weights[name] for name in weights if name.startswith("visual.")})
        model.logit_scale.data = weights["logit_scale"].reshape(())
    return model, _as_transformers(preprocess) if _conventions(folder) else preprocess


def _given(model_input: pd.DataFrame, name: str) -> dict[int, Any]:
    """Return the values of a column by row number, without the empty ones (None, NaN, no image)."""
    values = model_input[name].tolist() if name in model_input else []
    empty = (b"", "") if name == "image" else ()
    return {row: value for row, value in enumerate(values) if isinstance(value, bytes | str) and value not in empty}


def _image_file(value: bytes | str) -> bytes:
    """Return the bytes of an image file; a text is their base64."""
    if isinstance(value, bytes):
        return value
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        raise _refuse("image: neither bytes of an image file nor base64 of them") from None


def _unit(features: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(features, dim=-1)


def _refuse(message: str) -> MlflowException:
    return MlflowException.invalid_parameter_value(message)


mlflow.models.set_model(ServedClip())
