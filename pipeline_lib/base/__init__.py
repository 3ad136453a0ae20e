"""Stage `base`: the pre-trained model, from wherever it comes, as one self-contained open_clip folder.

agreement     a model of open_clip against transformers' own, before a conversion is accepted
checkpoints   checkpoint files as tensors by name
demo          the demo base: two published towers, joined by heads trained here
hub           models of the Hugging Face hub as folders
hugging_face  CLIPModel and SiglipModel folders in open_clip's terms
kinds         what transformers calls the parts of both
names         their tensors and open_clip's, as tables that are read both ways
processors    their image processors likewise
run           the base from wherever `base.source` says, and what is written to data/base/
siglip        the configuration of a SiglipModel in open_clip's terms
settings      section `base` of params.yaml
"""
