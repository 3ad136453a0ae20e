"""ImageNet's classes: the WordNet id that names the folder of each, and open_clip's name for it."""

from __future__ import annotations

from functools import cache

NUM_CLASSES = 1000


@cache
def imagenet_names() -> dict[str, str]:
    """Return open_clip's class name by WordNet id (`n01440764`), in the order of ImageNet's labels: 1,000 of them.

    The ids are timm's list for `imagenet-1k`, the names are open_clip's, which clip-benchmark publishes as well; two
    names stand twice (missile, sunglasses).

    Raises:
        RuntimeError: The two packages disagree on how many classes there are.
    """
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
    from timm.data import ImageNetInfo

    wnids = list(dict.fromkeys(ImageNetInfo("imagenet-1k").label_names()))
    if not len(wnids) == len(IMAGENET_CLASSNAMES) == NUM_CLASSES:
        raise RuntimeError(f"timm lists {len(wnids)} classes of ImageNet, open_clip {len(IMAGENET_CLASSNAMES)}")
    return dict(zip(wnids, IMAGENET_CLASSNAMES, strict=True))
