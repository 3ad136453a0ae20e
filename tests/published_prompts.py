"""The digests of pipeline_lib/evaluate/published.json: of what clip-benchmark's export to tars would write.

Its `webdataset_builder` writes a data set's class names and templates to classnames.txt and
zeroshot_classification_templates.txt. Templates are those of its en_zeroshot_classification_templates.json, under the
set's name or else ImageNet's. Class names are those of its en_classnames.json, or of what it loads the images with:
torchvision, or TensorFlow Datasets for its VTAB sets. Here they are read from the files of the packages, which are not
imported:

    python -m venv /tmp/published
    /tmp/published/bin/pip install --no-deps clip_benchmark==1.6.2 tensorflow-datasets==4.9.10
    python -m tests.published_prompts /tmp/published/lib/python3*/site-packages

prints the digest of each set and whether the table has it. ObjectNet is not among them: its names lie beside its
images.
"""

import ast
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline_lib.core.shards import prompts_digest

# The archives' class_names.txt and fine_label_names.txt, as text: ruff would write a line for each name of a list.
CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
STL10 = "airplane bird car cat deer dog horse monkey ship truck"


def classnames(packages: Path) -> dict[str, tuple[str, Sequence[str]]]:
    """{set of the table: (its name in the file of templates, class names)}."""
    builder = packages / "clip_benchmark/datasets"
    named = json.loads((builder / "en_classnames.json").read_text())
    imagenet, wnids = named["imagenet1k"], _constant(builder / "builder.py", "all_imagenet_wordnet_ids")

    def among(chosen: str) -> list[str]:
        return [
            name
            for name, wnid in zip(imagenet, wnids, strict=True)
            if wnid in _constant(builder / "builder.py", chosen)
        ]

    tfds = packages / "tensorflow_datasets"
    sun = [line[3:].strip() for line in (tfds / "image_classification/sun397_labels.txt").read_text().splitlines()]
    return {
        **dict.fromkeys(("imagenet1k", "imagenetv2", "imagenet_sketch"), ("imagenet1k", imagenet)),
        **{f"imagenet-{x}": ("imagenet1k", among(f"imagenet_{x}_wnids")) for x in "aro"},
        "cifar10": ("cifar10", CIFAR10.split()),
        "cifar100": ("cifar100", CIFAR100.split()),
        "eurosat": ("eurosat", named["eurosat"]),
        "dtd": ("dtd", (tfds / "image_classification/dtd_key_attributes.txt").read_text().split()),
        "resisc45": ("resisc45", _constant(tfds / "datasets/resisc45/resisc45_dataset_builder.py", "_LABELS")),
        "pets": ("pets", named["pets"]),
        "cars": ("cars", _constant(tfds / "image_classification/cars196.py", "_NAMES")),
        "sun397": ("sun397", [name.replace("_", " ").replace("/", " ") for name in sun]),
        "gtsrb": ("gtsrb", named["gtsrb"]),
        "stl10": ("stl10", STL10.split()),
        "renderedsst2": ("renderedsst2", ["negative", "positive"]),
        "country211": ("country211", named["country211"]),
        "voc2007": ("voc2007", _constant(builder / "voc2007.py", "object_categories")),
    }


def _constant(source: Path, name: str) -> list[str]:
    """The literal that a Python file assigns to `name`, anywhere in it."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id == name for to in node.targets):
            return list(ast.literal_eval(node.value))
    raise LookupError(name)


def digests(packages: Path) -> dict[str, str]:
    """{set of the table: digest of the class names and templates that its tars come with}."""
    of_set = json.loads((packages / "clip_benchmark/datasets/en_zeroshot_classification_templates.json").read_text())
    return {
        name: prompts_digest(
            [line.strip() for line in names], [re.sub(r"\{c?\}", "{}", template.strip()) for template in of_set[key]]
        )
        for name, (key, names) in classnames(packages).items()
    }


if __name__ == "__main__":
    from pipeline_lib.evaluate.published import read_table

    table = read_table()["sets"]
    for set_name, digest in digests(Path(sys.argv[1])).items():
        same = table.get(set_name, {}).get("prompts") == digest
        print(f"{set_name:16} {digest} {'as in the table' if same else 'NOT in the table'}")
