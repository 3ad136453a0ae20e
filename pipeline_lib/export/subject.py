"""What is exported: the base, the refined or a mixed model, with what was measured about it and where it came from."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from pipeline_lib import model
from pipeline_lib.core import artifacts, config, provenance
from pipeline_lib.core.errors import UserError
from pipeline_lib.core.paths import Paths
from pipeline_lib.evaluate import wise_ft
from pipeline_lib.evaluate.inputs import open_model
from pipeline_lib.report.inputs import ReportInputs, read_inputs
from pipeline_lib.results.folders import Variant
from pipeline_lib.shard.settings import ShardSettings
from pipeline_lib.tracking.text import public

STAGE = "export"
MOST_CAPTIONS = 10_000
SENTENCES = ("a photo of a cat", "two red circles on white", "the sea at night")  # where a set has no captions

Headlines = Mapping[str, Mapping[str, float]]  # {set: {headline: share}}


class Sample(NamedTuple):
    """Inputs on which an exported model is compared with what it was made from."""

    images: list[bytes]  # image files
    texts: list[str]


@dataclass(frozen=True)
class Subject:
    """A model in memory and everything that is known about it."""

    name: str  # base, refined or mix-0.5
    mix: float | None  # share of the refined weights; None: not a mix
    clip: model.Clip
    inputs: ReportInputs
    params_file: Path
    max_pixels: int  # of an image file

    @property
    def title(self) -> str:
        """Return what it is, for people."""
        kind = f"{self.name} model" if self.mix is None else f"mix of {self.mix:g} refined and {1 - self.mix:g} base"
        return f"{kind}, weights {self.facts['weights_digest'][:12]}"

    @property
    def facts(self) -> Mapping[str, Any]:
        """Return the `model` block of the manifest: digests, preprocessing, source, licence."""
        return self.clip.facts

    @property
    def measured(self) -> Headlines | None:
        """Return the headlines of every set; None for a mix that the evaluation did not look at."""
        if self.mix is not None:
            rows = self.inputs.refined.results.get("wise_ft") or []
            return next((row["sets"] for row in rows if math.isclose(row["mix"], self.mix)), None)
        found = {"base": self.inputs.base, "refined": self.inputs.refined}[self.name]
        return {name: {m.key: m.value for m in Variant(found).headlines(name)} for name in found.all_sets}

    @property
    def made_by(self) -> tuple[str, str]:
        """Return the stage that made the weights (of a mix: the refined ones) and the digest of its output."""
        stage = "base" if self.name == "base" else "refine"
        return stage, self.inputs.manifests[stage]["digest"]

    @property
    def origin(self) -> dict[str, Any]:
        """Return where it came from, as JSON values: digests of weights, data, cache and code, and how it was mixed."""
        outputs = {stage: manifest["digest"] for stage, manifest in self.inputs.manifests.items()}
        evaluations = {f"evaluate {e.results['model']}": e for e in (self.inputs.base, self.inputs.refined)}
        return {
            "model": self.name,
            "mix": self.mix,
            "weights_digest": self.facts["weights_digest"],
            "base_weights_digest": self.inputs.base.results["weights_digest"],
            "refined_weights_digest": self.inputs.refined.results["weights_digest"],
            "outputs": outputs | {name: found.manifest["digest"] for name, found in evaluations.items()},
            "code_of_refine": provenance.stage_digest("refine"),
            "packages": provenance.package_versions(),
        }

    @cached_property
    def sample(self) -> Sample:
        """Return three images and captions of the first evaluated set."""
        part = self.inputs.parts[self.inputs.sets[0]]
        shard = part.shards[0]
        entries = list(itertools.islice(itertools.cycle(shard.samples()), 3))
        captions = [caption for entry in entries for caption in entry.captions] or list(SENTENCES)
        return Sample(
            [shard.read_image(entry) for entry in entries], list(itertools.islice(itertools.cycle(captions), 3))
        )

    @cached_property
    def captions(self) -> list[str]:
        """Return the first captions of the evaluated sets, at most `MOST_CAPTIONS`: whose token ids are compared."""
        parts = (self.inputs.parts[name] for name in self.inputs.sets)
        entries = (entry for part in parts for shard in part.shards for entry in shard.samples())
        captions = (caption for entry in entries for caption in entry.captions)
        return list(itertools.islice(captions, MOST_CAPTIONS))

    def features(self, clip: model.Clip) -> dict[str, torch.Tensor]:
        """Return raw features [3, D] of the sample's images and texts by `clip`, which reads them by its own means."""
        with torch.no_grad():
            return {
                "image": clip.encode_image(self.pixels(clip)),
                "text": clip.encode_text(clip.tokenize(self.sample.texts)),
            }

    def pixels(self, clip: model.Clip) -> torch.Tensor:
        """Return the sample's images as `clip` decodes them: uint8 [3, 3, H, W]."""
        return torch.stack([torch.from_numpy(clip.decode(image, self.max_pixels)) for image in self.sample.images])


def open_subject(params_file: Path, which: str = "refined", mix: float | None = None) -> Subject:
    """Open the model to export, with the guards of the evaluation: it is the one evaluated, from this base.

    Args:
        params_file: params.yaml; its paths are relative to the current folder, as in the stages.
        which: `base` or `refined`.
        mix: Share of the refined weights, strictly between 0 and 1; the rest is the base model's.

    Raises:
        UserError: A stage has not run, its output was changed, `mix` is out of range, or there is nothing between the
            two models.
    """
    if mix is not None and not 0 < mix < 1:
        raise UserError(f"--mix: {mix:g} is not between 0 and 1; 0 is --model base, 1 is --model refined (the default)")
    if mix is not None and which == "base":
        raise UserError("--mix: a mix is made of both models; leave --model away")
    paths, shard = config.load(params_file, Paths), config.load(params_file, ShardSettings)
    inputs = read_inputs(params_file)
    inputs = dataclasses.replace(inputs, parameters=_public(inputs.parameters))  # what is exported is shown to others
    clip, base_weights, _ = open_model(which, paths, torch.device("cpu"))
    name = which
    if mix is not None:
        if base_weights is None:
            raise UserError("--mix: a language model reads the refined model's texts and not the base's, so there is "
                            "nothing between the two; leave --mix away")  # fmt: skip
        _mix(clip, base_weights, mix)
        name = f"mix-{mix:g}"
    return Subject(name, mix, clip, inputs, params_file, shard.max_image_pixels)


def refuse_to_overwrite(target: Path, *, force: bool) -> None:
    """Stop before work is done for nothing, or before something is lost that an export did not make.

    Raises:
        UserError: `target` is there and is no earlier export, or is one and `force` is not given.
    """
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    manifest = target / artifacts.MANIFEST
    made_here = manifest.is_file() and artifacts.read_json(manifest).get("stage") == STAGE
    if not made_here:
        raise UserError(f"--to: {target} is there and is no earlier export; name another folder")
    if not force:
        raise UserError(f"--to: {target} is there; name another folder, or pass --force to replace it")


def _mix(clip: model.Clip, base_weights: Mapping[str, torch.Tensor], mix: float) -> None:
    """Put the mixed weights into the refined model and describe it anew."""
    refined = {name: tensor.clone() for name, tensor in clip.module.state_dict().items()}
    clip.module.load_state_dict(wise_ft.interpolate(base_weights, refined, mix))
    clip.facts = {**clip.facts, **model.compute_facts(clip), "mix": mix}


def _public(value: Any) -> Any:
    """Return parameters without absolute paths and credentials."""
    if isinstance(value, Mapping):
        return {key: _public(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_public(inner) for inner in value]
    return public(value) if isinstance(value, str) else value
