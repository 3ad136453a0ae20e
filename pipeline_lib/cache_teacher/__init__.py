"""Stage `cache_teacher`: the frozen teacher's features of every image and caption, computed once.

unit          what the cache holds of one shard, and its files while it is made
tokens        the token ids of every caption, and where they are cut
chunks        decoded images, a chunk at a time, read ahead by other processes
writer        makes one unit: chunks and token ids in, features and digests out
pixels        the decoded images that are kept beside the cache
check         what is checked of units, parts and a sample of rows
statistics    mean, deviation and mean norms of the teacher's features
fingerprint   what a cached number depends on
reader        random access to the cache, joined to the shards by identity
teacher       the frozen teacher as the loop asks it, cached or computed on the spot
run           the order of it all, and what is written to data/teacher/
settings      section `cache_teacher` of params.yaml
"""
