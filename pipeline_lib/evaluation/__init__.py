"""Evaluation: embed each set once, then score it by pure functions of the features.

embedding    the only part that runs the model: images, captions and prompts of a set -> `EmbeddedSet`
scoring      retrieval, zero-shot, gap suite, mean-centred variant, intervals -> numbers and per-item arrays
forgetting   linear probe on frozen features; interpolation between base and refined weights (WiSE-FT)
run          the order of it all, the guards, and what is written to data/eval/<model>/
"""

from pipeline_lib.evaluation.embedding import EmbeddedSet, EmbeddedTask, Embedder
from pipeline_lib.evaluation.forgetting import interpolate, linear_probe
from pipeline_lib.evaluation.run import Evaluated, Inputs, build, evaluate, flat_metrics, write
from pipeline_lib.evaluation.scoring import headlines, score

__all__ = [
    "EmbeddedSet",
    "EmbeddedTask",
    "Embedder",
    "Evaluated",
    "Inputs",
    "build",
    "evaluate",
    "flat_metrics",
    "headlines",
    "interpolate",
    "linear_probe",
    "score",
    "write",
]
