"""A contrastive step from cached features, beside one that runs the language model, frozen or with LoRA in it."""

from dataclasses import dataclass
from pathlib import Path

import torch

from pipeline_lib import losses, model
from pipeline_lib.core.shards import read_part
from pipeline_lib.model.features import l2_normalize
from tests.language.cost import Cost, measure

NUM_PAIRS, NUM_STEPS = 64, 3
KINDS = ("cached", "frozen", "LoRA")


@dataclass
class Online:
    """One kind of step on one batch of noise and real captions; `trained`: the image tower learns too."""

    kind: str
    trained: bool
    clip: model.JoinedClip
    ids: torch.Tensor

    def __post_init__(self) -> None:
        """Compute what is cached, and put LoRA into the language model where it is asked."""
        size = self.clip.preprocess.image_size
        self.images = torch.randint(256, (NUM_PAIRS, 3, *size), dtype=torch.uint8)
        self.language = self.clip.language()
        self.language.module.requires_grad_(False)
        with torch.no_grad():
            self.features, self.still = self.language.encode(self.ids), self.clip.encode_image(self.images)
        learned = [*self.clip.module.text.parameters(), *(self.clip.module.visual.parameters() if self.trained else [])]
        if self.kind == "LoRA":
            import peft

            options = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
            lora = peft.get_peft_model(self.language.module, options)
            learned += [parameter for parameter in lora.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, lr=1e-5)

    def step(self) -> None:
        """Take a step."""
        with torch.set_grad_enabled(self.kind == "LoRA"):
            texts = self.features if self.kind == "cached" else self.language.encode(self.ids)
        images = self.clip.encode_image(self.images) if self.trained else self.still
        logits = 14.3 * l2_normalize(images) @ l2_normalize(self.clip.encode_text(texts)).T
        losses.contrastive_loss(logits).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def cost(kind: str, refined: Path, captions: list[str], *, trained: bool) -> Cost:
    """Measure one step of a kind, the mean of `NUM_STEPS` after one that warms up."""
    clip = model.load(refined)
    ids = clip.tokenizer(captions)
    one = Online(kind, trained, clip, ids[:, : int(clip.text_lengths(ids).max())])
    one.step()
    found = measure(lambda: [one.step() for _ in range(NUM_STEPS)])
    return found._replace(seconds=found.seconds / NUM_STEPS)


def steps(project: Path, refined: Path) -> str:
    """Measure all kinds of steps of the model in `refined`, on captions of part `refine`."""
    captions = [entry.captions[0] for entry in read_part(project / "data/shards/refine").entries()][:NUM_PAIRS]
    tables = []
    for trained in (False, True):
        costs = {kind: cost(kind, refined, captions, trained=trained) for kind in KINDS}
        parts = [f"{kind} {one.seconds:.2f} s, {one.peak:.1f} GB" for kind, one in costs.items()]
        tables.append(f"image tower {'trained' if trained else 'locked'}: {'; '.join(parts)}")
    return f"CPU s and memory of a step of {NUM_PAIRS} pairs, {'. '.join(tables)}"
