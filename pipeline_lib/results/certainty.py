"""How sure is sure: what section `evaluate` of params.yaml says of intervals and tests."""

from __future__ import annotations

from pipeline_lib.core.schema import AtLeastOne, Count, ProperShare, section


@section("evaluate")
class Certainty:
    """How sure intervals and tests are."""

    bootstrap_samples: AtLeastOne
    """Resamples of the images, for the intervals; the tests are exact and need none."""

    confidence: ProperShare
    """Confidence of the intervals, between 0 and 1; a change is measurable where p is below 1 minus this."""

    seed: Count
    """Seed of the resamples, and of the halves that probes and separability are measured on."""
