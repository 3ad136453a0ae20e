"""The conclusion of a comparison in one sentence that begins with it."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline_lib.results.paired import Verdict


def conclusion(verdicts: Sequence[Verdict]) -> str:
    """Say how many headlines rose, fell, did not move.

    >>> conclusion(["rose", "still", "rose"])
    'Better: of 3 headlines, 2 rose and 1 did not move measurably.'
    """
    rose, fell, still = (verdicts.count(kind) for kind in ("rose", "fell", "still"))
    if not verdicts:
        return "Nothing to compare: no headline was measured on both models."
    word = "Mixed" if rose and fell else "Better" if rose else "Worse" if fell else "No measurable change"
    if still == len(verdicts):
        return f"{word} in {'the one headline' if still == 1 else f'any of the {still} headlines'}."
    if len({*verdicts}) == 1:
        subject = "the one headline" if len(verdicts) == 1 else f"all {len(verdicts)} headlines"
        return f"{word}: {subject} {verdicts[0]}."
    kinds = ((rose, "rose"), (fell, "fell"), (still, "did not move measurably"))
    said = [f"{count} {verb}" for count, verb in kinds if count]
    return f"{word}: of {len(verdicts)} headlines, {', '.join(said[:-1])} and {said[-1]}."
