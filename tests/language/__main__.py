"""`python -m tests.language`: see the package."""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

import tests.language
from pipeline_lib import metrics, model
from pipeline_lib.cache_teacher.student import load_student
from pipeline_lib.core import artifacts, config
from pipeline_lib.core.paths import Paths
from pipeline_lib.core.shards import read_part
from pipeline_lib.evaluate.embedded import EmbeddedSet
from pipeline_lib.evaluate.embedding import Embedder
from tests.conftest import run_stage
from tests.language import online
from tests.language.cost import Cost, measure
from tests.tiny_project import ROOT, change

TUNE = {"epochs": 1, "batch_size": 32, "micro_batch": None, "scale": 50.0, "learning_rate": 2e-4, "warmup_steps": 4}
TUNE |= {"rank": 16, "alpha": 32.0, "dropout": 0.05, "precision": "fp32", "seed": 0}
ADAPTER = {"depth": 0, "expansion": 2, "dropout": 0.0, "learning_rate": 1e-3}
LOCKED = {"refine.lock_image": True, "refine.epochs": 30}
TRAINED = {"refine.epochs": 2, "refine.learning_rate": 5e-5}
KS = (1, 5, 10)
TEXTS = ("minilm", "minilm+tuned", "smollm2", "smollm2+bidirectional", "smollm2+tuned", "smollm2+bidirectional+tuned")


class Text(NamedTuple):
    """A language model: a source with its attention, perhaps tuned."""

    source: str
    attention: str = "own"
    tuned: bool = False

    @classmethod
    def of(cls, name: str) -> "Text":
        """Read `smollm2+bidirectional+tuned`."""
        source, *others = name.split("+")
        return cls(source, "bidirectional" if "bidirectional" in others else "own", "tuned" in others)

    def __str__(self) -> str:
        names = ["bidirectional"] * (self.attention != "own") + ["tuned"] * self.tuned
        return ", ".join([self.source, *names])


class Scored(NamedTuple):
    """A model on the test."""

    values: list[float]  # R@k image to text, R@k text to image, top-1, in per cent
    recall: torch.Tensor  # [N] of each image, the mean over k and both ways, in per cent


class Study:
    """A project folder in which stages run one after another in this process."""

    def __init__(self, folder: Path, photographs: Path, labelled: Path | None) -> None:
        self.folder = folder
        self.changes: dict[str, Any] = {
            "data.format": "flickr",
            "data.root": str(photographs.absolute()),
            "data.parts": {"eval": "val.txt", "base": 0.5, "refine": 0.4, "val": 0.1},
            "data.evaluation_root": str((labelled or photographs).absolute().parent),
            "data.evaluation": {"labelled": {"format": "image_folder", "path": labelled.name}} if labelled else {},
            "evaluate.prompt": "a photo of a {}",
            "runtime.num_threads": torch.get_num_threads(),
            "runtime.progress": False,
            "tracking.mode": "disabled",
        }
        demo = config.parse_yaml((ROOT / "ablations/flickr8k.yaml").read_text(), "flickr8k.yaml")["base"]["demo"]
        self.changes["base.demo"] = demo
        self.sets = ["eval", *(["labelled"] if labelled else [])]

    def run(self, *stages: str, **changes: Any) -> Cost:
        """Run stages with parameters changed (dots as `__`)."""
        values = self.changes | {key.replace("__", "."): value for key, value in changes.items()}
        params = change(config.read_params(ROOT / "params.yaml"), values)
        text = yaml.safe_dump(params, sort_keys=False).replace("1e-", "1.0e-").replace("5e-", "5.0e-")
        (self.folder / "params.yaml").write_text(text.replace("2e-", "2.0e-"))
        return measure(lambda: [run_stage(stage, self.folder) for stage in stages])

    def paths(self) -> Paths:
        """Where the stages write, for this process."""
        found = config.load(self.folder / "params.yaml", Paths)
        return Paths(**{key: self.folder / getattr(found, key) for key in Paths.__dataclass_fields__})

    def embed(self, clip: model.Clip) -> dict[str, EmbeddedSet]:
        """Embed all sets with a model whose texts give whatever they give."""
        embedder = Embedder(clip=clip, batch_size=64, prompt="a photo of a {}", ensemble="set", progress=False)
        return {name: embedder.embed(read_part(self.folder / "data/shards" / name)) for name in self.sets}


@torch.no_grad()
def scores(images: dict[str, torch.Tensor], texts: dict[str, EmbeddedSet], adapt: Any) -> Scored:
    """Score features; `adapt` maps text features into the shared space."""
    one = texts["eval"]
    owner = one.text_image_index
    ways = metrics.retrieval_ranks(images["eval"], adapt(one.raw_text_features), owner)
    hits = [torch.stack([ranks.hit_at(k) for k in KS]).double() for ranks in ways]
    values = [float(hit.mean()) for way in hits for hit in way]
    if "labelled" in texts:
        [task] = texts["labelled"].tasks.values()
        classes = model.features.l2_normalize(adapt(task.raw_prompt_features["single"][:, 0]))
        rows = model.features.l2_normalize(images["labelled"]) @ classes.T
        values.append(float((rows.argmax(1) == task.labels).double().mean()))
    of_image = torch.zeros(one.num_images, dtype=torch.float64).index_add_(0, owner, hits[1].mean(0)) / owner.bincount()
    return Scored([100 * value for value in values], 50 * (hits[0].mean(0) + of_image))


def caption_retrieval(one: EmbeddedSet) -> float:
    """R@1 of an image's second caption, searched for with its first, in per cent."""
    rows = [(one.text_image_index == image).nonzero()[:2, 0].tolist() for image in range(one.num_images)]
    first, second = (torch.tensor(side) for side in zip(*rows, strict=True))
    return 100 * float(metrics.caption_pair_ranks(one.raw_text_features, first, second).hit_at(1).mean())


def line(name: str, runs: list[Scored], base: Scored | None, costs: list[Cost]) -> str:
    """Write a row of the table: the mean of some seeds with their spread, and what they gain over the base.

    The gain in mean recall (of R@1, 5 and 10, both ways) has a 95 % interval from resampling the images.
    """
    values = torch.tensor([run.values for run in runs])
    spread = values.std(0) if len(runs) > 1 else torch.zeros(values.shape[1])
    cells = [f"{mean:.1f} ± {dev:.1f}" for mean, dev in zip(values.mean(0), spread, strict=True)]
    gain = "–"
    if base is not None:
        gains = torch.stack([run.recall - base.recall for run in runs]).mean(0)
        draws = torch.randint(len(gains), (5000, len(gains)), generator=torch.Generator().manual_seed(0))
        low, high = gains[draws].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        gain = f"{gains.mean():+.1f} [{low:+.1f}, {high:+.1f}]"
    cost = (
        [f"{sum(c.seconds for c in costs) / len(costs):.0f}", f"{max(c.peak for c in costs):.1f}"]
        if costs
        else ["–"] * 2
    )
    return f"| {' | '.join([name, *cells, gain, *cost])} |"


def own_rows(study: Study, seeds: range, recipes: list[str]) -> Scored:
    """Print the base, which is returned, and what refining it with its own text tower gives."""
    base = model.load(study.paths().base)
    texts = study.embed(base)
    images = {name: one.raw_image_features for name, one in texts.items()}
    print(f"retrieval of captions by captions, own text tower: {caption_retrieval(texts['eval']):.1f}")
    plain = scores(images, texts, lambda x: x)
    print(line("base", [plain], None, []), flush=True)
    print(f"images and captions cached: {study.run('cache_teacher')}")
    for recipe in recipes:
        runs, costs = [], []
        for seed in seeds:
            costs.append(study.run("refine", refine__recipe=recipe, refine__seed=seed, **_keys(TRAINED)))
            refined = study.embed(model.load(study.paths().refined))
            runs.append(scores({n: one.raw_image_features for n, one in refined.items()}, refined, lambda x: x))
        print(line(f"own text tower, trained, {recipe}", runs, plain, costs), flush=True)
    return plain


def _keys(values: dict[str, Any]) -> dict[str, Any]:
    return {key.replace(".", "__"): value for key, value in values.items()}


def language_rows(
    study: Study, text: Text, seeds: range, base: Scored, depths: tuple[int, ...] = (0,), *, trains: bool = False
) -> None:
    """Print one language model's cache, then adapters from it; where towers train, steps without the cache too."""
    asked = {
        "paths__text": "data/language",
        "language__stages": {"make": {}},
        "language__source": text.source,
        "language__attention": text.attention,
        "language__max_length": 77,
        "language__tune": TUNE if text.tuned else None,
        "refine__recipe": "contrastive",
        "refine__logit_scale": 14.3,
        "refine__train_logit_scale": True,
    }
    made = study.run("language", refine__adapter=ADAPTER, **asked)
    cached = study.run("cache_teacher", refine__adapter=ADAPTER, **asked)
    _, plain = load_student(study.paths())
    texts = study.embed(plain)
    tuning = artifacts.read_manifest(study.paths().language).get("tuning") or {}
    on_val = [100 * tuning[f"caption_pair_recall_at_1_{when}"] for when in ("before", "after")] if tuning else []
    before = f" (on val {on_val[0]:.1f} before tuning, {on_val[1]:.1f} after)" if on_val else ""
    print(f"{text}: read{' and tuned' if text.tuned else ''}: {made}; images and captions cached: {cached}")
    print(f"{text}: retrieval of captions by captions {caption_retrieval(texts['eval']):.1f}{before}")
    still = {name: one.raw_image_features for name, one in texts.items()}
    for depth in depths:
        for values, name in ((LOCKED, "locked"), (TRAINED, "trained")) if trains else ((LOCKED, "locked"),):
            runs, costs = [], []
            for seed in seeds:
                adapter = {**ADAPTER, "depth": depth}
                costs.append(study.run("refine", refine__adapter=adapter, refine__seed=seed, **asked, **_keys(values)))
                clip = model.load(study.paths().refined)
                images = still if name == "locked" else {n: _images(study, clip, n) for n in study.sets}
                runs.append(scores(images, texts, clip.encode_text))
            print(line(f"{text}, depth {depth}, {name}", runs, base, costs), flush=True)
    if trains:
        print(f"{text}: {online.steps(study.folder, study.paths().refined)}", flush=True)


def _images(study: Study, clip: model.Clip, name: str) -> torch.Tensor:
    embedder = Embedder(clip=clip, batch_size=64, prompt="a photo of a {}", ensemble="set", progress=False)
    return embedder.embed_images(read_part(study.folder / "data/shards" / name))


def main() -> None:
    """Run the study and print its table."""
    parser = argparse.ArgumentParser(
        description=tests.language.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("photographs", type=Path, help="folder of Flickr8k")
    parser.add_argument("--labelled", type=Path, help="folder of classes")
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--texts", default=",".join(TEXTS), help="language models (default: %(default)s)")
    parser.add_argument("--recipes", default="contrastive,clip_refine", help="on the own tower (default: %(default)s)")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    seeds, started = range(options.seeds), time.time()
    with tempfile.TemporaryDirectory() as top:
        study = Study(Path(top), options.photographs, options.labelled)
        print(f"base and shards: {study.run('base', 'shard')}")
        print("| | i→t R@1 | R@5 | R@10 | t→i R@1 | R@5 | R@10 | top-1 | gain over base | CPU s a run | GB |")
        base = own_rows(study, seeds, [name for name in options.recipes.split(",") if name])
        for text in map(Text.of, options.texts.split(",")):
            plain = text == Text(text.source)  # of the others the cheapest adapter says enough
            language_rows(study, text, seeds, base, (0, 4) if plain else (0,), trains=plain)
    print(f"{time.time() - started:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
