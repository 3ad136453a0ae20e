"""What others wrote, mutated: every reader of it takes it or refuses it in one sentence, and loses nothing on the way.

    python -m tests.fuzz --minutes 30               every target in turn
    python -m tests.fuzz flickr tars --minutes 5    some of them
    python -m tests.fuzz tars --readings 200 --seed 7   what a finding of seed 7 takes to be made again
    python -m tests.fuzz --list

A target writes a small valid example, in which one to three edits are made: bits flipped, a span cut out or doubled,
odd texts put in, a value of JSON replaced by one of another type, size or nesting. Hypothesis draws the edits and makes
those of a finding as few and as simple as it can. A **finding** is any exception but a `UserError` of one line, more
than five seconds of the processor, more than a gigabyte, or a balance that does not hold (what was read is what is used
and what is left out, and every sample that is left out is named). Each is printed once, with the path of the file.

    edits      the strategies that draw a mutated file
    targets    what is read, and what must hold afterwards
    campaign   time, memory, findings
"""
