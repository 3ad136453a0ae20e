"""Faults tried on every stage of a tiny project, and what came of each.

    python -m tests.faults                      every fault on every stage, about half an hour on two cores
    python -m tests.faults refine --times 3     one stage, three random moments of each kind
    python -m tests.faults --language           on a project whose captions a tuned language model reads

A fault is **survived** where the stage, run again, leaves bitwise the outputs of a run that nothing disturbed, and
**refused** where it ends in one line that says what is wrong. Of two runs of a stage at once, one may be refused if the
other is right; sets of 0, 1 and 2 training samples run through all stages or are refused. Anything else is a finding,
printed below its row: a part that passes for whole, other bits, a traceback, damage that nobody noticed.

    trials   one run of a stage in a process of its own, disturbed, and what it left
    table    all faults of a stage
"""
