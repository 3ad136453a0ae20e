"""All six stages over many tiny samples, and what each takes: does time grow with the set, and memory not?

    python -m tests.load                                     200,000 samples in 2,000 tars, and a tenth of them
    python -m tests.load --samples 2000 --shards 20 --classes 100

A tiny model and noise for images, so that what is seen is the pipeline's own cost of a sample, a shard and a class. The
set is read in place as `webdataset`, so that every part has as many shards as there are tars. Beside it there are two
sets to evaluate on: one with a class an image, and one with 20 captions an image.

Of each stage: seconds; CPU seconds; the largest resident memory of one process; the largest private memory (no page
of a file) of all its processes together, and how much of that came in the second half of the stage, where a stage whose
memory is flat has nothing to add; and the most files that one process had open.

    made    the project
    watch   one run of a stage, and its memory and files meanwhile
"""
