"""Stage `language`, which is optional: a language model as text side, frozen and perhaps tuned on pairs of captions.

settings   section `language` of params.yaml
sources    where a model comes from: an installed package, a folder
run        the stage: read, written, loaded back and compared
"""
