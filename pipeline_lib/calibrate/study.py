"""Shares over many trials: false alarms where nothing differs, power where something does, one run against several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline_lib.calibrate import trials, worlds
from pipeline_lib.calibrate.trials import Shown
from pipeline_lib.calibrate.worlds import World
from pipeline_lib.results import power, statistics
from pipeline_lib.results.folders import Evaluation, Variant
from pipeline_lib.results.measure import DIRECTIONS
from pipeline_lib.results.paired import Paired

HALVES, SAME, PERMUTED, UNTRAINED = "two halves of a model", "no difference", "permuted", "hardly trained"
NEW_IMAGES = 2000  # that say which half is truly the better one
LARGE = 1000  # images; of larger sets only the first two kinds of runs are made, and fewer worlds
SEEDS, KEPT = 3, 0.9  # of a training that makes nothing better; correlation of a seed's noise with the base's
STATISTICS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # of ranks, higher is better
    "R@1": lambda ranks: (ranks <= 1).astype(float),
    "mean of R@1, 5, 10": lambda ranks: np.mean([ranks <= k for k in (1, 5, 10)], axis=0),
    "MRR": lambda ranks: 1 / ranks,
    "log rank": lambda ranks: -np.log(ranks),
}


def all_worlds(sizes: Sequence[int]) -> list[World]:
    """Return the worlds of each size; of the largest those that are quick enough to draw."""
    found = []
    for n in sizes:
        found += [
            World("plain", n),
            World("unbalanced classes", n, imbalance=1.5),
            World("copies, repeated captions", n, captions_per_image=2, copied=0.3, repeated=0.3),
        ]
        if n <= LARGE:
            found += [World("5 captions an image", n, captions_per_image=5), World("100 classes", n, num_classes=100)]
    return found


@dataclass
class Alarms:
    """How many of some runs said that a headline rose, that one fell, and either wrongly."""

    runs: int = 0
    rose: int = 0
    fell: int = 0
    false: int = 0

    def add(self, rows: Sequence[Paired], wrong: Callable[[Paired], bool] = lambda row: True) -> None:
        """Count one run; `wrong` says whether a verdict that moved is false."""
        verdicts = [row.verdict for row in rows]
        self.runs += 1
        self.rose += "rose" in verdicts
        self.fell += "fell" in verdicts
        self.false += any(row.verdict != "still" and wrong(row) for row in rows)

    def join(self, other: Alarms) -> None:
        """Count the runs of another one with these."""
        self.runs += other.runs
        self.rose += other.rose
        self.fell += other.fell
        self.false += other.false

    @property
    def upper(self) -> float:
        """Return the upper end of the 95 % interval of the false share (Wilson 1927)."""
        z, n, share = 1.96, self.runs, self.false / self.runs
        return (share + z * z / (2 * n) + z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)


@dataclass
class Study:
    """What was counted on one world."""

    world: World
    alarms: dict[str, Alarms] = field(default_factory=dict)  # by how nothing differs
    one_run: Alarms = field(default_factory=Alarms)
    several: Alarms = field(default_factory=Alarms)
    power: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # headline -> mean over the runs, per effect and smallest


def study(world: World, runs: int) -> Study:
    """Run all trials of a world."""
    found = Study(world, {kind: Alarms() for kind in (SAME, HALVES)})
    resolutions: dict[str, list[list[float]]] = {}
    for run in range(runs):
        generator = np.random.default_rng([run, world.num_images])
        drawn = worlds.draw(world, generator)
        noises = [worlds.draw_noise(drawn, generator) for _ in range(2)]
        halves = [trials.measure(worlds.see(drawn, noise, half)) for half, noise in enumerate(noises)]
        _count_alarms(found, drawn, noises, halves, generator)
        if world.num_images <= LARGE:
            _count_more_alarms(found, drawn, noises, halves[0], generator)
            _count_seeds(found, drawn, noises[0], halves[0], generator)
        if run < 20:
            for key, row in _resolutions(*halves):
                resolutions.setdefault(key, []).append(row)
    found.power = {key: np.mean(rows, axis=0) for key, rows in resolutions.items()}
    return found


def _count_alarms(
    found: Study,
    drawn: worlds.Drawn,
    noises: Sequence[worlds.Noise],
    halves: Sequence[Shown],
    generator: np.random.Generator,
) -> None:
    n = found.world.num_images
    found.alarms[SAME].add(trials.judge(trials.traded(halves, generator, n), n))
    better = _truly_better(found.world, drawn, noises, generator)
    found.alarms[HALVES].add(trials.judge(halves, n), lambda row: (row.difference.value > 0) != better[row.before.key])


def _count_more_alarms(
    found: Study,
    drawn: worlds.Drawn,
    noises: Sequence[worlds.Noise],
    base: Shown,
    generator: np.random.Generator,
) -> None:
    n = found.world.num_images
    mismatched = worlds.permuted(drawn, generator)
    strangers = [trials.measure(worlds.see(mismatched, noise, half)) for half, noise in enumerate(noises)]
    found.alarms.setdefault(PERMUTED, Alarms()).add(trials.judge(strangers, n))
    hardly = noises[0].mixed(noises[1], 1 - 1e-5)
    found.alarms.setdefault(UNTRAINED, Alarms()).add(trials.judge([base, trials.measure(worlds.see(drawn, hardly))], n))


def _truly_better(
    world: World, drawn: worlds.Drawn, noises: Sequence[worlds.Noise], generator: np.random.Generator
) -> dict[str, bool]:
    """Return by headline whether the second half is better than the first on new images, with the prompts it has."""
    new = worlds.draw(replace(world, num_images=NEW_IMAGES, captions_per_image=1, copied=0, repeated=0), generator)
    moved = drawn.classes[new.labels] - new.classes[new.labels]  # to the same classes as before
    new = new._replace(image=new.image + moved, text=new.text + moved, classes=drawn.classes)
    seen = [
        trials.measure(worlds.see(new, worlds.draw_noise(new, generator)._replace(classes=noise.classes), half))
        for half, noise in enumerate(noises)
    ]
    return {key: seen[1][key].measure.value > seen[0][key].measure.value for key in seen[0]}


def _count_seeds(
    found: Study, drawn: worlds.Drawn, noise: worlds.Noise, base: Shown, generator: np.random.Generator
) -> None:
    n = found.world.num_images
    seeds = [
        trials.measure(worlds.see(drawn, noise.mixed(worlds.draw_noise(drawn, generator), KEPT))) for _ in range(SEEDS)
    ]
    found.one_run.add(trials.judge([base, seeds[0]], n))
    found.several.add(trials.judge_seeds(base, seeds, n))


def _resolutions(before: Shown, after: Shown) -> Iterator[tuple[str, list[float]]]:
    headlines = [key for key, one in before.items() if one.measure.is_headline]
    level = (1 - trials.SETTINGS.confidence) / len(headlines)
    for key in headlines:
        items = before[key].mean, after[key].mean
        yield (
            before[key].measure.label,
            [*power.power(*items, level, seed=0), power.smallest_found(*items, level, seed=0)],
        )


# ---- stored ranks ----


def compare_statistics(folder: Path, sizes: Sequence[int], runs: int) -> Iterator[tuple[str, str, int, list[float]]]:
    """Yield how often each statistic of stored ranks tells base from refined, on sets drawn from those evaluated.

    Args:
        folder: data/eval.
        sizes: Images to draw, without replacement; sizes that a set does not have are left out.
        runs: How many times.

    Yields:
        Set, direction, size, and for each of `STATISTICS` the share of draws in which sign flips give p < 0.05.
    """
    evaluations = [Evaluation(folder / name) for name in ("base", "refined")]
    for name in evaluations[1].all_sets:
        items = [evaluation.items(name) for evaluation in evaluations]
        for direction in DIRECTIONS:
            if f"{direction}_rank" not in items[0]:
                continue
            measure = next(m for m in Variant(evaluations[0]).headlines(name) if m.direction == direction)
            image = Variant(evaluations[0]).mean(measure).image_index
            ranks = [one[f"{direction}_rank"].astype(float) for one in items]
            sums = {key: np.bincount(image, value(ranks[1]) - value(ranks[0])) for key, value in STATISTICS.items()}
            for size in (size for size in sizes if size <= len(np.unique(image))):
                yield name, DIRECTIONS[direction], size, list(_shares_found(sums, np.unique(image), size, runs))


def _shares_found(sums: dict[str, np.ndarray], units: np.ndarray, size: int, runs: int) -> Iterator[float]:
    for differences in sums.values():
        generator = np.random.default_rng(0)
        p_values = [
            statistics.sign_flips(differences[generator.choice(units, size, replace=False)]) for _ in range(runs)
        ]
        yield float(np.mean(np.array(p_values) < 0.05))
