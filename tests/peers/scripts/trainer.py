"""Run open_clip's trainer as it is, each step when a line says so: `trainer.py THREADS ARGUMENT ...`.

Answers CPU and wall seconds of each step (from asking for its batch to asking for the next), at last those of the whole
process without the waiting.
"""

import sys
import time

BEGAN = time.perf_counter()

import channel  # noqa: E402
import open_clip_train.main  # noqa: E402


class Gated:
    """A loader that reads a batch when it is told to."""

    def __init__(self, loader):
        self.loader, self.num_batches, self.num_samples = loader, loader.num_batches, loader.num_samples

    def __iter__(self):
        batches = iter(self.loader)
        for _ in range(self.num_batches):
            channel.wait()
            with channel.measured() as used:
                yield next(batches)
            channel.answer(**used)


def get_data(*arguments, **named):
    data = original(*arguments, **named)
    data["train"].dataloader = Gated(data["train"].dataloader)
    return data


channel.use_threads(sys.argv[1])
original, open_clip_train.main.get_data = open_clip_train.main.get_data, get_data
open_clip_train.main.main(sys.argv[2:])
channel.wait()
channel.answer(cpu=time.process_time(), wall=time.perf_counter() - BEGAN - channel.waited)
