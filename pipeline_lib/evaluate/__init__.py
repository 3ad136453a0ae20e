"""Stage `evaluate`: embed each set once, then score it by pure functions of the features.

inputs          the model and what it is evaluated on; the guard: one refined from this base
embedding       the only part that runs the model: images, captions and prompts of a set -> `EmbeddedSet`
embedded        what that is, and its directions, as they are or centred
scoring         all that a set scores in one variant, the gap suite among it -> measures and per-item arrays
retrieval       log rank, recall and ranks in both directions
zero_shot       accuracy, calibration, classes and confusions
choices         accuracy of choices between texts, text, image and group score of pairs
measured        measures beside their items, until their intervals are known
probes          linear probes on the frozen image features
few_shot        the same from a few images of each class, with and without the prompts
calibration     calibration with the temperature refitted
class_groups    zero-shot on the classes that the training captions seldom name, and on the others
wise_ft         models between the base and the refined one, by their weights
known_answers   the base model's numbers, held against what it is known to score
published       published scores (published.json), and the sets that they are of
evaluation      the order of it all, for one model on every set
flat            its numbers by name
run             the stage: open, evaluate, and what is written to data/eval/<model>/
settings        section `evaluate` of params.yaml
"""
