"""What the allocator keeps, seen in a process of its own: page faults of work that was done before."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import json, resource, sys, threading
from fedkd.inference.allocator import keep_freed_memory
told = keep_freed_memory() if sys.argv[1] == "keep" else False
import torch
torch.set_num_threads(1)
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):  # the heap settles in the first few
        torch.relu(torch.ones(2**24))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def work():
    faults()
    found.append(faults())
found = []
thread = threading.Thread(target=work)
thread.start()
thread.join()
print(json.dumps([told, found[0]]))
"""


def probe(how: str) -> tuple[bool, int]:
    done = subprocess.run([sys.executable, "-c", PROBE, how], capture_output=True, text=True, check=True)
    told, faults = json.loads(done.stdout)
    return told, faults


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_freed_memory_is_used_again_in_an_engines_thread():
    told, kept = probe("keep")
    if not told:
        pytest.skip("this C library is not glibc")
    _, plain = probe("plain")
    assert kept < plain / 10
