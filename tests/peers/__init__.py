"""The project against what people use today, on the same tars, model, batch and threads; nothing here is a test.

    make bench-peers        # makes .venv-peers first; or: python -m tests.peers [--pairs 192 --batch 16 ...] [part ...]

`scripts` are programs of the peers' environment that do one unit of work when they are told to (`sides`), so that both
sides take turns; a ratio is that of two neighbouring turns. Numbers that both compute must agree, or it ends.
"""
