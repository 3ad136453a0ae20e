"""What both sides see: photographs of Flickr8k's size with captions of its lengths, a random ViT-B/32, a project."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np

from pipeline_lib.core import config
from pipeline_lib.core.paths import Paths
from tests.bench.inputs import WORDS, Used, jpeg, paths_of, stage_used, write_vit
from tests.tiny_project import ROOT, change

SIZE = (500, 375)
CLASSES = ("cat", "dog", "bird", "fish", "horse", "car", "boat", "house", "tree", "flower")
TEMPLATES = (  # as many as the short ensemble that OpenAI published for ImageNet has
    "a photo of a {c}.",
    "a bad photo of the {c}.",
    "a picture of one {c}.",
    "a photo of the large {c}.",
    "a drawing of the {c}.",
    "many a {c}.",
    "a photo of the small {c}.",
)


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    pairs: int = 192  # of an epoch
    batch: int = 16
    threads: int = 1
    rounds: int = 3  # of turns; the distillation takes its whole epoch
    images: int = 64  # of the retrieval set, five captions each
    labelled: int = 128  # of the zero-shot set


def captions(count: int, generator: np.random.Generator) -> list[str]:
    """Distinct captions as long as Flickr8k's: 15 of CLIP's tokens on average, one of them 39."""
    law = NormalDist(np.log(12.5), 0.35)
    lengths = [int(np.clip(round(np.exp(law.inv_cdf((i + 0.5) / count))), 4, 37)) for i in range(count)]
    lengths[-1] = 37  # and the tokens of start and end
    return [" ".join(generator.choice(WORDS.split(), size=size)) for size in generator.permutation(lengths)]


def write_pairs(folder: Path, sizes: Sizes, captions_each: int) -> None:
    """A set in Flickr8k's layout: parts `refine`, `val`."""
    generator = np.random.default_rng(0)
    (folder / "Images").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(sizes.pairs + 2 * sizes.batch)]
    for name in names:
        (folder / "Images" / name).write_bytes(jpeg(generator, SIZE))
    columns = [captions(len(names), generator) for _ in range(captions_each)]
    rows = [f"{name},{text}\n" for name, texts in zip(names, zip(*columns, strict=True), strict=True) for text in texts]
    (folder / "captions.txt").write_text("image,caption\n" + "".join(rows))
    (folder / "refine.txt").write_text("\n".join(names[: sizes.pairs]))
    (folder / "val.txt").write_text("\n".join(names[sizes.pairs :]))


def write_tars(folder: Path, seed: int, samples: Iterable[dict[str, str]], files: dict[str, str]) -> None:
    """A set in clip-benchmark's layout: a photograph a sample, with its texts by extension."""
    generator = np.random.default_rng(seed)
    (folder / "test").mkdir(parents=True)
    for name, text in (files | {"test/nshards.txt": "1"}).items():
        (folder / name).write_text(text)
    with tarfile.open(folder / "test/0.tar", "w") as tar:
        for number, texts in enumerate(samples):
            members = {"jpg": jpeg(generator, SIZE)} | {kind: text.encode() for kind, text in texts.items()}
            for kind, data in members.items():
                info = tarfile.TarInfo(f"s{number:07d}.{kind}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_evaluation_sets(folder: Path, sizes: Sizes) -> None:
    """`retrieval` with five captions an image, `classes` with a label each."""
    texts = captions(5 * sizes.images, np.random.default_rng(3))
    described = ({"txt": "\n".join(texts[5 * i : 5 * i + 5])} for i in range(sizes.images))
    write_tars(folder / "retrieval", 1, described, {"dataset_type.txt": "retrieval"})
    labelled = ({"cls": str(i % len(CLASSES))} for i in range(sizes.labelled))
    names = {"classnames.txt": "\n".join(CLASSES), "zeroshot_classification_templates.txt": "\n".join(TEMPLATES)}
    write_tars(folder / "classes", 2, labelled, names)


@dataclass(frozen=True)
class World:
    """The project that is measured, and what its peers read of it."""

    root: Path
    sizes: Sizes

    @property
    def paths(self) -> Paths:
        """Its outputs."""
        return paths_of(self.root)

    @property
    def weights(self) -> Path:
        """The one file of weights."""
        return self.root / "clip/open_clip_model.safetensors"

    def stage(self, name: str) -> Used:
        """Run a stage; what that costs."""
        return stage_used(name, self.root, OMP_NUM_THREADS=str(self.sizes.threads))

    def tars(self, part: str) -> list[Path]:
        """The project's own tars of a part."""
        return sorted((self.paths.shards / part).glob("*.tar"))

    def pattern(self, part: str) -> str:
        """All of them as webdataset writes it, with braces."""
        tars = self.tars(part)
        return f"{tars[0].parent}/{{{tars[0].stem}..{tars[-1].stem}}}.tar"


def make(root: Path, sizes: Sizes, captions_each: int = 1) -> World:
    """A project with everything but its outputs, on the values of the repository's params.yaml."""
    write_pairs(root / "set", sizes, captions_each)
    write_evaluation_sets(root / "more", sizes)
    write_vit(root / "clip", "ViT-B-32")
    values = {
        "data.format": "flickr",
        "data.root": "set",
        "data.parts": {"refine": "refine.txt", "val": "val.txt"},
        "data.evaluation_root": "more",
        "data.evaluation": {name: {"format": "clip_benchmark", "path": name} for name in ("retrieval", "classes")},
        "base.source": "local_dir",
        "base.path": "clip",
        "shard.samples_per_shard": 4 * sizes.batch,
        "refine.batch_size": sizes.batch,
        "refine.learning_rate": 1e-5,
        "runtime.device": "cpu",
        "runtime.num_threads": sizes.threads,
        "runtime.num_workers": 0,
        "runtime.progress": False,
        "tracking.mode": "disabled",
    }
    params = change(config.read_params(ROOT / "params.yaml"), values)
    (root / "params.yaml").write_text(json.dumps(params))
    return World(root, sizes)
