"""A set of images, captions and prompts through a model, once: the only part of the evaluation that runs it.

Notable:

- What is equal is embedded once: images with one content hash, texts with one sequence of token ids. Their features are
  then equal bitwise, which the sharing of places among ties relies on, and nothing is computed twice.
- A row does not depend on how many others there are, see `model.embed`.
- Finished features are kept on disk until the stage has succeeded: a killed run, started again, goes on from there.
- An image that `shard` accepted but that does not decode, and features that are constant, zero or not finite, end the
  stage: such numbers would look like results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch

from pipeline_lib import model, terminal
from pipeline_lib.core import artifacts, runtime
from pipeline_lib.core.distributed import World
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.read_ahead import read_ahead
from pipeline_lib.core.shards import IndexEntry, Part, Shard
from pipeline_lib.core.truncation import Truncation
from pipeline_lib.evaluate.embedded import EmbeddedChoices, EmbeddedSet, EmbeddedTask
from pipeline_lib.model import Clip, Preprocess
from pipeline_lib.model.embed import embed_images, embed_texts_by_length
from pipeline_lib.model.features import fault

log = logging.getLogger(__name__)
TEXTS_ON_CPU = 32  # in a pass: more differ more in length, and are no faster together


@dataclass(frozen=True)
class Embedder:
    """A model and how to run it. Other weights need a new one: it keeps the prompts' features between sets."""

    clip: Clip
    batch_size: int
    prompt: str  # single zero-shot prompt, with {} for the class name
    ensemble: str  # `set`: the set's own templates where it has them; `openai`: open_clip's for ImageNet; `both`
    num_workers: int = 0
    progress: bool = True
    world: World = field(default_factory=World)
    kept: Path | None = None  # folder for finished features, named by all that they depend on; None: nothing is kept
    _of_prompt: dict[str, torch.Tensor] = field(init=False, default_factory=dict)  # sets often share their tasks
    _of_images: dict[str, torch.Tensor] = field(init=False, default_factory=dict)  # of whole parts, by name

    def embed(self, part: Part) -> EmbeddedSet:
        """Embed all images, captions, texts of choices and prompts of a part.

        Raises:
            UserError: Images do not decode, or the features are constant, zero or not finite.
        """
        entries = [entry for _, entry in _places(part)]
        captions = [caption for entry in entries for caption in entry.captions]
        asked = list(dict.fromkeys(text for choice in part.choices for text in choice.texts))
        prompts = {name: self._prompts(name, task) for name, task in _labelled_tasks(part, entries).items()}
        new = [t for kinds in prompts.values() for texts in kinds.values() for t in texts if t not in self._of_prompt]
        raw_image_features = self.embed_images(part)
        raw_text_features = self._once(f"{part.name}.texts", lambda: self._embed_texts(part, [*captions, *asked, *new]))
        raw_captions, raw_asked, raw_new = raw_text_features.split([len(captions), len(asked), len(new)])
        self._of_prompt.update(zip(new, raw_new.clone(), strict=True))
        tasks = {name: self._task(part, entries, name, kinds) for name, kinds in prompts.items()}
        found = self._set(part, entries, raw_image_features, raw_captions, tasks)
        return replace(found, choices=_embedded_choices(part, entries, asked, raw_asked)) if part.choices else found

    def count_truncated(self, part: Part) -> dict[str, dict[str, int]]:
        """Return the `Truncation.facts` of the captions, texts of choices and prompts of a part, where it has some."""
        entries = [entry for _, entry in _places(part)]
        prompts = [self._prompts(name, task) for name, task in _labelled_tasks(part, entries).items()]
        of_kind = {
            "captions": [caption for entry in entries for caption in entry.captions],
            "texts of choices": [text for choice in part.choices for text in choice.texts],
            "class prompts": [text for kinds in prompts for texts in kinds.values() for text in texts],
        }
        found = {}
        for kind, texts in ((kind, texts) for kind, texts in of_kind.items() if texts):
            count, distinct = Truncation(self.clip.context_length), list(dict.fromkeys(texts))
            token_ids = self.clip.tokenize(distinct)
            cut = self.clip.truncated(distinct, token_ids)
            truncated = {distinct[row] for row in cut.nonzero()[:, 0].tolist()}
            count.add(len(texts), [text for text in texts if text in truncated], token_ids[cut].tolist())
            found[kind] = count.facts()
        return found

    def embed_sample(self, part: Part, count: int) -> EmbeddedSet:
        """Embed `count` images of a part, the same ones in every run, and their captions; no tasks.

        Raises:
            UserError: See `embed`.
        """
        rows = np.sort(np.random.default_rng(0).permutation(part.num_samples)[:count]).tolist()
        drawn = _places_at(part, set(rows))
        captions = [caption for _, entry in drawn for caption in entry.captions]
        if len(rows) == part.num_samples or part.name in self._of_images:
            raw_image_features = self.embed_images(part)[rows]
        else:
            raw_image_features = self._once(f"{part.name}.sample.images", lambda: self._embed_images(part, drawn))
        raw_text_features = self._once(f"{part.name}.sample.texts", lambda: self._embed_texts(part, captions))
        return self._set(part, [entry for _, entry in drawn], raw_image_features, raw_text_features, {})

    def _set(
        self,
        part: Part,
        entries: Sequence[IndexEntry],
        raw_image_features: torch.Tensor,
        raw_text_features: torch.Tensor,
        tasks: dict[str, EmbeddedTask],
    ) -> EmbeddedSet:
        counts = torch.tensor([len(entry.captions) for entry in entries])
        return EmbeddedSet(
            name=part.name,
            digest=part.digest,
            keys=tuple(entry.key for entry in entries),
            image_hashes=tuple(entry.sha256 for entry in entries),
            captions=tuple(caption for entry in entries for caption in entry.captions),
            text_image_index=torch.arange(len(entries)).repeat_interleave(counts),
            raw_image_features=raw_image_features,
            raw_text_features=raw_text_features,
            logit_scale=self.clip.logit_scale.item(),
            tasks=tasks,
        )

    def _task(
        self, part: Part, entries: Sequence[IndexEntry], name: str, prompts: Mapping[str, Sequence[str]]
    ) -> EmbeddedTask:
        classnames = tuple(part.tasks[name]["classnames"])
        features = {
            kind: torch.stack([self._of_prompt[text] for text in texts]).unflatten(0, (len(classnames), -1))
            for kind, texts in prompts.items()
        }
        return EmbeddedTask(classnames, labels(entries, name), features)

    def _prompts(self, name: str, task: Any) -> dict[str, list[str]]:
        """List the texts of each kind of prompts, class after class."""
        kinds = prompt_templates(task["templates"], self.ensemble, self.prompt)
        for template in kinds["single"]:
            if template.count("{}") != 1:
                raise UserError(f"evaluate.prompt: {template!r} must hold {{}} once, for the class name of `{name}`")
        return {
            kind: [template.replace("{}", classname) for classname in task["classnames"] for template in of_kind]
            for kind, of_kind in kinds.items()
        }

    # images

    def embed_images(self, part: Part) -> torch.Tensor:
        """Return the raw features of every image of a part: float32 [N, D]."""
        if part.name not in self._of_images:
            found = self._once(f"{part.name}.images", lambda: self._embed_images(part, _places(part)))
            self._of_images[part.name] = found
        return self._of_images[part.name]

    def _embed_images(self, part: Part, places: Sequence[tuple[Shard, IndexEntry]]) -> torch.Tensor:
        first_of: dict[str, int] = {}
        for place, (_, entry) in enumerate(places):
            first_of.setdefault(entry.sha256, place)
        distinct = list(first_of.values())
        own = [places[i] for i in distinct][self.world.own_rows(len(distinct))]
        features = self._run_images(part, own)
        features = self._gather(features, len(distinct))
        self._check(part, "image", features)
        row_of = {sha256: row for row, sha256 in enumerate(first_of)}
        return features[[row_of[entry.sha256] for _, entry in places]]

    def _run_images(self, part: Part, places: Sequence[tuple[Shard, IndexEntry]]) -> torch.Tensor:
        batches = _Batches(places, self.batch_size, self.clip.preprocess, part.max_image_pixels)
        decoded = read_ahead(batches, num_workers=min(self.num_workers, len(batches)))
        features, reasons = [], []
        label = f"{part.name}: images"
        with terminal.progress(None, label=label, total=len(places), unit="img", enabled=self._shows_progress) as bar:
            for pixels, failed in runtime.until_stopped(decoded):
                reasons += failed
                if not reasons:
                    features.append(embed_images(self.clip, pixels, self.batch_size))
                bar.update(len(pixels) + len(failed))
        if reasons:
            raise UserError(
                f"{part.directory}: {len(reasons)} of {len(places)} images cannot be read, though `shard` accepted "
                f"them ({'; '.join(reasons[:3])}); see to shard.max_image_pixels, or run `dvc repro -f shard`"
            )
        return torch.cat(features) if features else torch.empty(0, self.clip.embed_dim)

    # texts

    def _embed_texts(self, part: Part, texts: Sequence[str]) -> torch.Tensor:
        """Return the raw features of texts, float32 [len(texts), D]; texts with the same tokens are embedded once."""
        if not texts:
            return torch.empty(0, self.clip.embed_dim)
        distinct_texts = list(dict.fromkeys(texts))
        token_ids = self.clip.tokenize(distinct_texts)
        token_ids, row_of = token_ids.unique(dim=0, return_inverse=True)
        row_of_text = dict(zip(distinct_texts, row_of.tolist(), strict=True))
        own = token_ids[self.world.own_rows(len(token_ids))]
        features = self._gather(self._run_texts(part, own), len(token_ids))
        self._check(part, "text", features)
        return features[[row_of_text[text] for text in texts]]

    def _run_texts(self, part: Part, token_ids: torch.Tensor) -> torch.Tensor:
        def watch(passes: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
            label, enabled = f"{part.name}: texts", self._shows_progress
            with terminal.progress(None, label=label, total=len(token_ids), unit="text", enabled=enabled) as bar:
                for rows in runtime.until_stopped(passes):
                    yield rows
                    bar.update(len(rows))

        size = min(self.batch_size, TEXTS_ON_CPU) if self.clip.device.type == "cpu" else self.batch_size
        return embed_texts_by_length(self.clip, token_ids, size, multiple=1, watch=watch)

    # both

    def _once(self, name: str, embed: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the features that an earlier run has finished, else those of `embed`, kept for a later run."""
        if self.kept is None:
            return embed()
        path = self.kept / f"{name}.safetensors"
        if not self.world.any(not path.is_file()):
            log.info("resumed: %s were embedded", name)
            return safetensors.torch.load_file(path)["features"]
        features = embed()
        if self.world.is_main:
            artifacts.write_bytes(path, safetensors.torch.save({"features": features.contiguous()}))
        return features

    @property
    def _shows_progress(self) -> bool:
        return self.progress and self.world.is_main

    def _gather(self, own: torch.Tensor, count: int) -> torch.Tensor:
        """Return the features of every process, on each."""
        if self.world.size == 1:
            return own
        return torch.cat(self.world.gather_rows(own.to(self.clip.device), count)).cpu()

    def _check(self, part: Part, side: str, features: torch.Tensor) -> None:
        """Refuse features that cannot mean anything; `features` are of distinct inputs."""
        problem = fault(features, len(features))
        if problem:
            raise UserError(
                f"{self.clip.directory}: {side} features of `{part.name}`: {problem}; check the model's weights"
            )


class _Batches:
    """Decoded images, a batch an item, and why some cannot be read. Picklable, so that decoders may be processes."""

    def __init__(
        self, places: Sequence[tuple[Shard, IndexEntry]], batch_size: int, preprocess: Preprocess, max_pixels: int
    ) -> None:
        self.places, self.batch_size, self.preprocess, self.max_pixels = places, batch_size, preprocess, max_pixels

    def __getitem__(self, index: int) -> tuple[torch.Tensor, list[str]]:
        pixels, reasons = [], []
        for shard, entry in self.places[index * self.batch_size : (index + 1) * self.batch_size]:
            try:
                pixels.append(self.preprocess.decode(shard.read_image(entry), self.max_pixels))
            except (ValueError, UserError) as error:
                reasons.append(f"{entry.key}: {error}")
        return torch.from_numpy(np.stack(pixels)) if pixels else torch.empty(0), reasons

    def __len__(self) -> int:
        return -(-len(self.places) // self.batch_size)


def _places(part: Part) -> list[tuple[Shard, IndexEntry]]:
    """List every entry of a part in order, with the shard that its image lies in."""
    return [(shard, entry) for shard in part.shards for entry in shard.samples()]


def _places_at(part: Part, rows: Collection[int]) -> list[tuple[Shard, IndexEntry]]:
    """List the entries at `rows` like `_places`, of a part that may be large: only they are kept in memory."""
    every = ((shard, entry) for shard in part.shards for entry in shard.read_samples())
    return [place for row, place in enumerate(every) if row in rows]


def _embedded_choices(
    part: Part, entries: Sequence[IndexEntry], texts: Sequence[str], raw_text_features: torch.Tensor
) -> EmbeddedChoices:
    image_row = {entry.key: row for row, entry in enumerate(entries)}
    return EmbeddedChoices(part.choices, image_row, {text: row for row, text in enumerate(texts)}, raw_text_features)


def _labelled_tasks(part: Part, entries: Sequence[IndexEntry]) -> dict[str, Any]:
    """Return the tasks of a part for which some image has a label."""
    return {name: task for name, task in part.tasks.items() if any(name in entry.labels for entry in entries)}


def prompt_templates(own: Sequence[str], ensemble: str, single: str) -> dict[str, list[str]]:
    """Return the templates of each kind of zero-shot prompts: `single`, `ensemble`, perhaps `imagenet`.

    Args:
        own: Those of the set; there may be none.
        ensemble: `set`: the set's own where it has them; `openai`: open_clip's for ImageNet; `both`.
        single: The one template of `single`.
    """
    of_set = list(own) if ensemble in ("set", "both") else []
    kinds = {"single": [single], "ensemble": of_set or model.imagenet_templates()}
    return kinds | ({"imagenet": model.imagenet_templates()} if ensemble == "both" and of_set else {})


def labels(entries: Sequence[IndexEntry], task: str) -> torch.Tensor:
    """Return the class indices of `entries` in `task`, −1 for an entry without: [N] int64."""
    return torch.tensor([entry.labels.get(task, -1) for entry in entries], dtype=torch.int64)
