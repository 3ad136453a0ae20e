"""Stage `shard`: images and captions as byte-stable tars with manifests, a folder per part and evaluation set."""
