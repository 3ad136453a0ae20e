"""Steps and whole runs: open_clip's trainer, and the method as its authors released it, against `refine`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch

from pipeline_lib import losses, model
from pipeline_lib.cache_teacher.reader import open_parts
from pipeline_lib.model.features import Features
from pipeline_lib.refine import recipes
from pipeline_lib.refine.step import take_step
from tests.bench import loop
from tests.bench.inputs import Used
from tests.peers.inputs import World
from tests.peers.sides import Peer, in_this_process
from tests.peers.table import Table, alternate, median

STAGES = ("base", "shard", "cache_teacher", "refine")


def trainer(world: World, *, distills: bool) -> Peer:
    """open_clip's trainer on the project's own tars, one epoch, its defaults but for schedule and precision."""
    sizes = world.sizes
    arguments = {
        "train-data": world.pattern("refine"),
        "train-num-samples": sizes.pairs,
        "dataset-type": "webdataset",
        "batch-size": sizes.batch,
        "workers": 0,
        "epochs": 1,
        "lr": 1e-5,
        "warmup": 0,
        "lr-scheduler": "const",
        "precision": "fp32",
        "model": "ViT-B-32",
        "pretrained": world.weights,
        "logs": world.root / "logs",
        "name": f"distills-{distills}",
        **({"distill-model": "ViT-B-32", "distill-pretrained": world.weights} if distills else {}),
    }
    flat = [str(text) for key, value in arguments.items() for text in (f"--{key}", value)]
    return Peer("trainer", sizes.threads, *flat, threads=sizes.threads, folder=world.root)


def own_step(world: World, recipe: str) -> Callable[[], Used]:
    """A step of `refine` as the stage takes it, reading included."""
    state, setup, steps, _ = loop.start(world.root, recipe=recipe)
    return lambda: in_this_process(lambda: take_step(state, next(steps), setup))


def make_inputs(world: World) -> None:
    """Run the stages before `refine`."""
    for name in STAGES[:-1]:
        world.stage(name)


def whole(table: Table, world: World) -> None:
    """All stages to the refined model, once; what each costs is kept for the other rows."""
    used = {name: world.stage(name) for name in STAGES}
    table.facts["stages"] = {name: one._asdict() for name, one in used.items()}


def contrastive(table: Table, world: World) -> None:
    """The trainer's contrastive step against the recipe `contrastive`."""
    with trainer(world, distills=False) as peer:
        theirs, ours = alternate(world.sizes.rounds, peer.used, own_step(world, "contrastive"))
    table.compare("contrastive step", 1.4, theirs, ours, "open_clip's trainer; the same loss on one batch")


def distillation(table: Table, world: World) -> None:
    """The trainer's epoch of distillation against as many steps of `clip_refine`; against `whole`, if that has run."""
    steps = world.sizes.pairs // world.sizes.batch
    with trainer(world, distills=True) as peer:
        theirs, ours = alternate(steps - 1, peer.used, own_step(world, "clip_refine"))
        run, memory = peer.used(), peer.gigabytes()
    table.facts["saved"] = (median(theirs) - median(ours)) / world.sizes.batch  # CPU seconds of a pair
    table.compare("distillation step", 2.0, theirs, ours, "open_clip's `--distill-model` against `clip_refine`, cached")
    if "stages" not in table.facts:
        return
    stages = table.facts["stages"].values()
    own = Used(sum(one["cpu"] for one in stages), sum(one["wall"] for one in stages))
    note = f"one distillation of {steps} steps by open_clip's trainer against base, shard, cache_teacher, refine"
    table.compare("whole run", 1.0, [run], [own], note)
    most = table.facts["stages"]["refine"]["gigabytes"]
    note = f"{memory:.1f} GB against {most:.1f} GB, resident at most; the trainer with its teacher against `refine`"
    table.add("memory of distillation", [memory / most], 1.0, note)


# --- the released loop ------------------------------------------------------------------------------------------


def released(table: Table, world: World) -> None:
    """The method's loop as released, written from its equations: teacher online, 77 tokens, torch's plain AdamW."""
    step = released_step(world)
    theirs, ours = alternate(
        world.sizes.rounds,
        lambda: in_this_process(lambda: loop.with_any_kernel(step)),
        own_step(world, "clip_refine"),
    )
    note = "its pixels are decoded for nothing; same loss on one batch"
    table.compare("step of the released loop", 2.0, theirs, ours, note)


def released_step(world: World) -> Callable[[], None]:
    """RaFA and HyCD with the teacher run beside the student, on one batch in memory; checks its loss once."""
    state, setup, steps, _ = loop.start(world.root)
    student, teacher = state.student, model.load(world.paths.base)
    data = next(steps)
    draws = setup.draws(data.rows, 0)
    reference = draws.normal(student.embed_dim)[0]
    optimizer = torch.optim.AdamW(student.module.parameters(), lr=1e-5, weight_decay=0.1)

    def loss() -> torch.Tensor:
        with torch.no_grad():
            image, text, _ = loop.plain_features(teacher, data.inputs)
            target = image @ text.T
        image, text, _ = loop.plain_features(student, data.inputs)
        aligned = losses.rafa_loss(image, text, reference, reduction="mean")
        return aligned + losses.hycd_loss(image @ text.T, target, alpha=0.5, temperature=1.0)

    with torch.no_grad():
        cached = setup.teacher_features(student, data)
        features = loop.plain_features(student, data.inputs)
        expected = recipes.total_loss(setup.recipe(features, cached, draws))
        agree("loss of the released loop", float(loss()), float(expected), 1e-5)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


# --- agreement --------------------------------------------------------------------------------------------------


def agree(what: str, theirs: float, ours: float, tolerance: float) -> None:
    """End with an error where two numbers differ by more than `tolerance` of their size."""
    if not abs(theirs - ours) <= tolerance * abs(theirs):
        raise AssertionError(f"{what}: {theirs!r} by the peer, {ours!r} here")


def agreement(table: Table, world: World, count: int = 6) -> None:
    """One identical batch through both: samples that the reader takes, pixels, token ids, both losses."""
    arguments = (world.root / "clip", count, world.pattern("refine"))
    with Peer("agreement", *arguments, threads=world.sizes.threads, folder=world.root) as peer:
        theirs = peer()
    clip = model.load(world.paths.base)
    part = open_parts(world.paths, clip)["refine"]
    rows = range(count)
    pixels = part.read_inputs(rows, [0] * count).images
    token_ids = clip.tokenize([part.entry(row)[1].captions[0] for row in rows])
    with torch.no_grad():
        student, teacher = (
            Features(clip.encode_image(seen), clip.encode_text(token_ids), clip.logit_scale)
            for seen in (pixels, pixels.flip(-1))
        )
    logits, target = (recipes.similarity(features, "scaled_cosine") for features in (student, teacher))
    entropy = sum(torch.distributions.Categorical(logits=x).entropy().mean() for x in (target, target.T)) / 2
    ours = {
        "samples": len(part),
        "pixels": hashlib.sha256(clip.normalize(pixels).contiguous().numpy().tobytes()).hexdigest(),
        "token_ids": hashlib.sha256(token_ids.numpy().tobytes()).hexdigest(),
    }
    assert {key: theirs[key] for key in ours} == ours
    agree("contrastive loss", theirs["contrastive"], float(losses.contrastive_loss(logits)), 1e-5)
    distillation = losses.hycd_loss(logits, target, alpha=0.0) + entropy
    agree("distillation loss", theirs["distillation"], float(distillation), 1e-5)
    print(f"open_clip's reader takes all {len(part)} samples of the project's tars; pixels, token ids, losses agree")
