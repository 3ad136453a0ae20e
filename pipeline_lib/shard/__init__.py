"""Stage `shard`: images and captions as byte-stable tars with manifests, a folder per part and evaluation set.

images       checks one image file: header, number of pixels, end
triage       which samples are used, and why others are not
jobs         one shard: a tar written, or one that lies elsewhere indexed in place
records      what a job found and wrote
workers      the processes that write shards
set_writer   one set and its parts on the way into shards
leakage      train/test leakage: what was trained on stays in no part that is evaluated
choices      which choices of a set are scored, and why others are not
manifests    what data/shards says of itself
run          the order of it all, and what is written to data/shards/
settings     section `shard` of params.yaml
"""
