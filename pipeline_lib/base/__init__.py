"""Stage `base`: the pre-trained model, from wherever it comes, as one self-contained open_clip folder."""
