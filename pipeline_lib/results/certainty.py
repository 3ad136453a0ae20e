"""How sure is sure: what section `evaluate` of params.yaml says of intervals and tests."""

from __future__ import annotations

from pipeline_lib.core.schema import AtLeastOne, Count, ProperShare, section


@section("evaluate")
class Certainty:
    """How sure intervals and tests are."""

    bootstrap_samples: AtLeastOne
    """How many times the images are resampled for the intervals. Tests are exact and need no resamples."""

    confidence: ProperShare
    """Confidence of the intervals, between 0 and 1. A change is called measurable where its p-value is below 1 minus
    this number.
    """

    seed: Count
    """Seed of the resampling, of the halves on which linear probes, temperatures and the separability of the modalities
    are measured, and of the images that few-shot curves draw.
    """
