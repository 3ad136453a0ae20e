"""Stage `base`: the pre-trained model, from wherever it comes, as one self-contained open_clip folder.

checkpoints   weights from elsewhere, as tensors by open_clip's names
demo          the demo base: two published towers, joined by heads trained here
run           the base from wherever `base.source` says, and what is written to data/base/
settings      section `base` of params.yaml
"""
