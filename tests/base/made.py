"""Run stage base as a test needs it, and what it is run on."""

import json
from pathlib import Path

import pytest
import torch

from pipeline_lib import model
from pipeline_lib.base import run as base
from pipeline_lib.base.settings import BaseSettings
from pipeline_lib.core import artifacts, schema
from pipeline_lib.sources.settings import DataSettings
from tests.tiny_model import WORDS

CPU = torch.device("cpu")
CAPTIONS = ["a cat", "two dogs on a hill"]


def settings(**given) -> BaseSettings:
    section = {"source": "checkpoint", "model": None, "pretrained": None, "path": None, **given}
    demo = {
        "image_size": 64,
        "embed_dim": 16,
        "epochs": 3,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "dropout": 0.5,
        "logit_scale": None,
        "seed": 0,
    }
    section["demo"] = demo | section.get("demo", {})
    return schema.build(BaseSettings, section, "params.yaml: base")


def data(root: Path = Path(), **given) -> DataSettings:
    section = {
        "format": "jsonl",
        "root": str(root),
        "images": None,
        "annotations": None,
        "parts": {"base": 1.0},
        "limit": None,
        "evaluation_root": str(root),
        "evaluation": {},
        **given,
    }
    return schema.build(DataSettings, section, "params.yaml: data")


def materialise(target: Path, **given) -> model.Clip:
    """Run the source and load what it wrote."""
    base.run(settings(**given), data(), target, device=CPU)
    assert artifacts.verify(target) == []
    return model.load(target)


def assert_left_nothing(folder: Path) -> None:
    assert not [path.name for path in folder.iterdir() if "base" in path.name]


def hugging_face_model(folder: Path, *, activation: str = "quick_gelu", eos: int = 49407, eps: float = 1e-5, **common):
    """A random CLIPModel saved to `folder`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    common = {"hidden_act": activation, "num_hidden_layers": 2, "layer_norm_eps": eps, **common}
    text = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "eos_token_id": eos}
    vision = {"hidden_size": 48, "intermediate_size": 96, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
    theirs = transformers.CLIPModel(
        transformers.CLIPConfig(text_config={**text, **common}, vision_config={**vision, **common}, projection_dim=16)
    ).eval()
    with torch.no_grad():  # away from the initial values, at which a wrong mapping could hide
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        theirs.logit_scale.fill_(1.5)
    theirs.save_pretrained(folder)
    return theirs


def siglip_model(folder: Path, *, text: dict | None = None, vision: dict | None = None, **common):
    """A random SiglipModel with an image processor and a tokenizer of its own, saved to `folder`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    rows = write_siglip_tokenizer(folder)
    common = {"num_hidden_layers": 2, "num_attention_heads": 3, **common}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 1}
    sizes = {"hidden_size": 24, "intermediate_size": 40, "max_position_embeddings": 20, "projection_size": 48}
    texts = {**common, "vocab_size": rows, **ids, **sizes, **(text or {})}
    sizes = {"hidden_size": 48, "intermediate_size": 100, "image_size": 32, "patch_size": 8}
    images = {**common, **sizes, **(vision or {})}
    theirs = transformers.SiglipModel(transformers.SiglipConfig(text_config=texts, vision_config=images)).eval()
    with torch.no_grad():  # away from the initial values, at which a wrong mapping could hide
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        theirs.logit_scale.fill_(1.5)
        theirs.logit_bias.fill_(-3.25)
    theirs.save_pretrained(folder)
    side = images["image_size"]
    transformers.SiglipImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)
    return theirs


def write_siglip_tokenizer(folder: Path) -> int:
    """A Unigram tokenizer that reads texts as SigLIP's does: lower case, no punctuation, an end; return its size."""
    import string

    import transformers
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in WORDS), "▁", *string.ascii_lowercase, *string.digits]
    inner = Tokenizer(models.Unigram([(piece, -float(row)) for row, piece in enumerate(pieces)], unk_id=2))
    punctuation = Regex(f"[{''.join(chr(92) + each for each in string.punctuation)}]")
    steps = [normalizers.Lowercase(), normalizers.Replace(punctuation, ""), normalizers.Replace(Regex(r"\s+"), " ")]
    inner.normalizer = normalizers.Sequence([*steps, normalizers.Strip()])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, model_input_names=["input_ids"], model_max_length=20, **names
    ).save_pretrained(folder)
    return len(pieces)


def edit(path: Path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
