"""What every stage stands on: errors, params.yaml's loader, files and their hashes, shards, processes, devices.

errors        the one exception that a user reads
schema        plain values to frozen dataclasses, strictly
config        the only reader of params.yaml, a section at a time
paths         where each stage writes
artifacts     files that cross a stage: atomic writes, hashes, manifests
work_folders  where a stage builds its output: a rename away from its place, kept across a kill
images        image files as pixels: samples of more than eight bits, a digest
shards        the format of sharded data, and its reader
truncation    texts that are longer than a model reads, counted
provenance    code, its digest and the packages that a result came from
read_ahead    items read by processes that may die
runtime       signals, device, threads, precision, determinism
distributed   many processes as one
"""
