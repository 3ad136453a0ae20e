"""A randomly initialised open_clip CLIP, small enough for a unit test: 32 px, width 32, two layers, D = 16.

Native towers and the standard tokenizer, so that it takes the same path as ViT-B/32 does. Written in milliseconds.
"""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file

from pipeline_lib import model
from pipeline_lib.model.adapter import Shape
from pipeline_lib.model.language import LanguageModel, Reading, load_language, read_transformers, save_language


def tiny_config(*, quick_gelu: bool = False, embed_dim: int = 16, context_length: int = 77, **text) -> dict:
    """open_clip_config.json of the tiny model; `text` adds to or overrides its text_cfg."""
    model_cfg = {
        "embed_dim": embed_dim,
        "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
        "text_cfg": {
            "context_length": context_length,
            "vocab_size": 49408,
            "width": 32,
            "heads": 2,
            "layers": 2,
            **text,
        },
    }
    if quick_gelu:
        model_cfg["quick_gelu"] = True
    preprocess_cfg = {
        "size": 32,
        "mode": "RGB",
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "resize_mode": "shortest",
        "fill_color": 0,
    }
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg}


def write_tiny_clip(directory: Path, seed: int = 0, *, quick_gelu: bool = False, **overrides) -> Path:
    """Write the tiny model to `directory` as open_clip would, with weights that depend on `seed` alone."""
    config = tiny_config(quick_gelu=quick_gelu, **overrides)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
    with torch.no_grad():
        module.visual.positional_embedding.mul_(0.1)  # else it drowns the image
        module.token_embedding.weight.mul_(20)  # else all captions look alike
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, directory / "open_clip_model.safetensors")
    return directory


def write_tiny_timm_clip(
    directory: Path, seed: int = 0, *, image_size: int = 32, timm_model: str = "resnet10t"
) -> Path:
    """A tiny open_clip model whose image tower is timm's smallest residual network, with batch normalisation."""
    config = tiny_config()
    config["model_cfg"]["vision_cfg"] = {
        "image_size": image_size,
        "timm_model_name": timm_model,
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
    }
    directory.mkdir(parents=True)
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = open_clip.create_model(f"local-dir:{directory}", load_weights=False)
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, directory / "open_clip_model.safetensors")
    return directory


WORDS = (
    "a",
    "an",
    "the",
    "photo",
    "picture",
    "of",
    "cat",
    "dog",
    "red",
    "blue",
    "two",
    "hill",
    "house",
    "near",
    "river",
)
WORDS += ("on", "and", "bird", "green", "in")


def write_word_tokenizer(directory: Path, template: str = "<s> $A </s>") -> list[str]:
    """A tokenizer of whole words, which puts `template` around a text; return its tokens."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    inner = Tokenizer(models.WordLevel({word: row for row, word in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(template, special_tokens=[("<s>", 0), ("</s>", 2)])
    names = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    directory.mkdir(parents=True, exist_ok=True)
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(directory)
    return tokens


def write_tiny_language(directory: Path, kind: str = "llama", seed: int = 0, **sizes) -> Path:
    """A tiny language model of transformers, with random weights, as a folder: a decoder, an encoder, or `t5`."""
    import transformers

    tokens = write_word_tokenizer(directory, "<s> $A" if kind in ("llama", "gpt2", "qwen2") else "<s> $A </s>")
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind in ("llama", "qwen2"):
        common["num_key_value_heads"] = 1
    if kind == "gpt2":
        common = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    common |= {"max_position_embeddings": 64, "pad_token_id": 1, "vocab_size": len(tokens)}
    config = transformers.AutoConfig.for_model(kind, **{**common, **sizes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = transformers.AutoModel.from_config(config)
    for name, parameter in module.named_parameters():
        if "embed" in name or "wte" in name:
            parameter.data.mul_(20)  # else all texts look alike
    module.save_pretrained(directory)
    return directory


def write_tiny_joined(
    directory: Path,
    kind: str = "llama",
    depth: int = 0,
    license: str = "that of a test",
    base: Path | None = None,
    **reading,
) -> Path:
    """A tiny image tower joined with a tiny language model, all with random weights; `reading` is how that is read."""
    image_side = model.load(base or write_tiny_clip(directory.with_name(f"{directory.name}_base"), seed=1))
    source = write_tiny_language(directory.with_name(f"{directory.name}_{kind}"), kind)
    how = Reading(**{"attention": "own", "pooling": "mean", "prompt": "{}", "max_length": 24, **reading})
    save_language(LanguageModel(*read_transformers(source), how, source), directory / "language")
    facts = load_language(directory / "language").facts() | {
        "source": {"kind": "folder", "folder": kind},
        "license": license,
    }
    model.save(model.join(image_side, directory / "language", facts, Shape(depth, 2, 0.0), seed=3), directory)
    return directory


def write_tiny_hf_clip(
    directory: Path, seed: int = 0, *, model_type: str = "bert", pooler: str = "mean_pooler", embed_dim: int = 16
) -> Path:
    """A tiny open_clip model with a Hugging Face text tower and its own word-level tokenizer, all files beside it."""
    import transformers

    vocabulary = write_word_tokenizer(directory)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
    }
    if model_type == "mt5":
        sizes = {"d_model": 32, "num_layers": 2, "num_heads": 2, "d_ff": 64, "d_kv": 16}
    tower = transformers.AutoConfig.for_model(model_type, vocab_size=len(vocabulary), pad_token_id=1, **sizes)
    tower.save_pretrained(directory)
    config = tiny_config(embed_dim=embed_dim, context_length=24)
    config["model_cfg"]["text_cfg"] = {
        "hf_model_name": "tiny/tower",  # nowhere: must never be asked for
        "hf_tokenizer_name": "tiny/tower",
        "hf_model_pretrained": False,
        "hf_pooler_type": pooler,
        "hf_proj_type": "linear",
        "context_length": 24,
    }
    (directory / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = model.create(directory).module
    save_file({k: v.contiguous() for k, v in module.state_dict().items()}, directory / "open_clip_model.safetensors")
    return directory


def custom_clip(directory: Path, *, vision: dict | None = None, **config) -> model.Clip:
    """A tiny model with changes to text_cfg (keyword `text`) and model_cfg (the others), weights at random, fp64."""
    text = config.pop("text", {})
    content = tiny_config(**text)
    content["model_cfg"] |= config
    content["model_cfg"]["vision_cfg"] |= vision or {}
    directory.mkdir()
    (directory / model.CONFIG).write_text(json.dumps(content))
    torch.manual_seed(0)
    clip = model.create(directory)
    with torch.no_grad():
        clip.text_tower.token_embedding.weight.mul_(20)
    clip.module.double()
    return clip


COCA = {
    "vision": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "multimodal_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
    "custom_text": True,
    "text": {"embed_cls": True, "output_tokens": True},
}
