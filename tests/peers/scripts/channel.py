"""How these programs answer the one that started them: a line of JSON for each line that they are sent.

All are run by the Python of the peers' environment and import nothing of this project.
"""

import json
import os
import sys
import time
from contextlib import contextmanager

import torch

_answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what anything else prints goes to standard error
waited = 0.0  # seconds between an answer and the next line


def answer(**values):
    """Send one line."""
    print(json.dumps(values), file=_answers, flush=True)


def wait():
    """Return the next line, or leave where none will come."""
    global waited
    began = time.perf_counter()
    line = sys.stdin.readline()
    waited += time.perf_counter() - began
    if not line:
        raise SystemExit(0)
    return line.strip()


@contextmanager
def measured():
    """Measure the block: what it gives holds CPU and wall seconds afterwards."""
    used = {}
    cpu, wall = time.process_time(), time.perf_counter()
    yield used
    used |= {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def use_threads(number):
    """Compute with so many threads."""
    torch.set_num_threads(int(number))
