"""Stage `language`, which is optional: a language model as text side, frozen and perhaps tuned on pairs of captions.

settings   section `language` of params.yaml
sources    where a model comes from: an installed package, a folder
pairs      captions of one image, two by two
tuning     LoRA on such pairs, step by step, merged at the end
run        the stage: read, perhaps tuned, written, loaded back and compared
"""
