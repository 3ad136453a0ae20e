"""One dual encoder as an open_clip directory: load, encode, describe, save. The only importer of open_clip.

preprocess   open_clip's evaluation transform, cut in two where pixels are uint8
clip         the loaded model: images and captions to raw features, tokenizer, logit scale
big_vision   checkpoints of big_vision (.npz, SigLIP)
embed        a tower over many rows without gradients, in passes of one size
facts        what decides its features, by digest; compared with what a folder's manifest recorded
adapter      the trained map from a language model's features to raw text features
language     a frozen language model as an encoder of texts
probe        tries out what its attention really is
joined       an image tower whose texts go through a language model and an adapter
text_tower   such a model as an ordinary one of open_clip, where that has a text tower of the same kind
features     the tuples that travel between model, losses, recipes and metrics
licence      what lies beside a model about its licence
files        names of a folder's files; tensors as safetensors, and their digest
folder       open_clip directories: load, create, save
native       what decides the forward pass of OpenAI's kind of CLIP, read from its modules
siglip       and of SigLIP's kind
towers       locked whole or in part, with less memory, for training
published    architectures, published weights, vocabulary and prompt templates that open_clip knows

`export.served_model`, which MLflow runs without this package, imports open_clip too, and `sources.imagenet` reads the
names of ImageNet's classes there.
"""

from pipeline_lib.model.big_vision import load_big_vision
from pipeline_lib.model.clip import SCALARS, Clip, lacks_package
from pipeline_lib.model.facts import GUARDED, compare_facts, compute_facts, recorded_facts
from pipeline_lib.model.files import (
    CONFIG,
    DESCRIBED,
    TOKENIZER_FILES,
    TOWER_CONFIG,
    WEIGHTS,
    copy_files,
    is_described,
    save_weights,
    weights_digest,
)
from pipeline_lib.model.folder import (
    create,
    load,
    load_weights,
    open_folder,
    read_config,
    save,
    weights_file,
    write_config,
)
from pipeline_lib.model.joined import ADAPTER, JoinedClip, join
from pipeline_lib.model.native import Native, Tower, describe_native
from pipeline_lib.model.preprocess import Preprocess
from pipeline_lib.model.published import (
    architecture,
    architectures,
    download,
    imagenet_templates,
    pretrained_tags,
    standard_merges,
    standard_vocabulary,
)
from pipeline_lib.model.siglip import Siglip, describe_siglip, pools_by_attention
from pipeline_lib.model.text_tower import foreign_text_side, read_otherwise, with_text_tower
from pipeline_lib.model.towers import checkpoint_activations, image_layers, lock_image, lock_text, projection_names

__all__ = [
    "ADAPTER",
    "CONFIG",
    "DESCRIBED",
    "GUARDED",
    "SCALARS",
    "TOKENIZER_FILES",
    "TOWER_CONFIG",
    "WEIGHTS",
    "Clip",
    "JoinedClip",
    "Native",
    "Preprocess",
    "Siglip",
    "Tower",
    "architecture",
    "architectures",
    "checkpoint_activations",
    "compare_facts",
    "compute_facts",
    "copy_files",
    "create",
    "describe_native",
    "describe_siglip",
    "download",
    "foreign_text_side",
    "image_layers",
    "imagenet_templates",
    "is_described",
    "join",
    "lacks_package",
    "load",
    "load_big_vision",
    "load_weights",
    "lock_image",
    "lock_text",
    "open_folder",
    "pools_by_attention",
    "pretrained_tags",
    "projection_names",
    "read_config",
    "read_otherwise",
    "recorded_facts",
    "save",
    "save_weights",
    "standard_merges",
    "standard_vocabulary",
    "weights_digest",
    "weights_file",
    "with_text_tower",
    "write_config",
]
