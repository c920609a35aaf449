"""Peak memory of one distillation step, in a fresh process: live tensors, and the process's resident set.

`python -m fedkd.cli.benchmarks.step_memory VARIANT TEACHERS SIZE RECIPE.yaml` prints one line of JSON.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

# One arena, and large blocks given back at once: the resident set then follows the live tensors.
MALLOC = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def measure(recipe: Any, variant: str, teachers: int, size: str) -> dict[str, float]:
    """{"tensor_bytes", "resident_bytes", "resident_before_bytes", "parameter_bytes"} of a step, peaks.

    `tensor_bytes` counts every live tensor: weights, adapters, optimiser, pictures, activations. On CUDA it
    is what the allocator counted at most. `resident_bytes` is the process's peak, `resident_before_bytes`
    its size before the measured model was loaded. Raises RuntimeError when the process fails.
    """
    from fedkd.recipe import save_recipe

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        save_recipe(recipe, path)
        done = subprocess.run(
            [sys.executable, "-m", __name__, variant, str(teachers), size, str(path)],
            env=os.environ | MALLOC | {"OMP_NUM_THREADS": str(recipe.run.threads)},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"'{variant}' with {teachers} teachers could not be measured: {last}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def resident(field: str) -> int:
    """The process's present (VmRSS) or greatest (VmHWM) resident set in bytes; 0 where the system does not say."""
    # getrusage would count the parent's peak as well: Linux hands it on to children.
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def rehearse(recipe: Any) -> None:
    """One step with one picture, thrown away: what Python loads on the way is not what a step costs."""
    from fedkd.cli.benchmarks.step_variants import SAMPLED, bench_of, stepper

    small = replace(recipe, distillation=replace(recipe.distillation, batch_size=1))
    steps, _ = stepper(bench_of(small, "tiny"), SAMPLED, 1, (1,))
    steps[1](0)
    del steps, _
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the greatest resident set starts anew


def live_tensor_peak(run: Callable[[], None], held: Iterable[Any]) -> int:
    """The most bytes of tensors that lived at one time while `run()` ran; `held` tensors lived before."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    known: dict[int, weakref.ref[Any]] = {}
    total = [0, 0]  # now, at most

    def see(tensor: Any) -> None:
        if not isinstance(tensor, torch.Tensor):
            return
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in known and known[key]() is storage:
            return

        def gone(_: Any) -> None:
            known.pop(key, None)
            total[0] -= size

        known[key] = weakref.ref(storage, gone)
        total[0] += size
        total[1] = max(total)

    class Watch(TorchDispatchMode):
        """Looks at what every operation takes and gives."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for leaf in tree_leaves((args, kwargs, result)):
                see(leaf)
            return result

    for tensor in held:
        see(tensor)
    with Watch():
        run()
    return total[1]


def in_this_process(recipe: Any, variant: str, teachers: int, size: str) -> dict[str, float]:
    """What `measure` gives; the resident sets mean something in a fresh process alone."""
    import torch

    from fedkd.cli.benchmarks.step_variants import bench_of, stepper

    torch.set_num_threads(recipe.run.threads)
    rehearse(recipe)
    before = resident("VmRSS")
    bench = bench_of(recipe, size)
    steps, held = stepper(bench, variant, teachers, (teachers,))
    step, networks = steps[teachers], [bench.denoiser, *held[:-1]]
    step(0)  # the optimiser's moments are there from now on
    tensors = [p for network in networks for p in [*network.parameters(), *network.buffers()]]
    parameter_bytes = sum(p.numel() * p.element_size() for p in tensors)
    tensors += [t for state in held[-1].state.values() for t in state.values()]
    tensors += [bench.examples.latents, *bench.examples.conditions.values()]
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
        step(1)
        peak = int(torch.cuda.max_memory_allocated(bench.device))
    else:
        step(1)
    after = resident("VmHWM")
    if bench.device.type != "cuda":
        peak = live_tensor_peak(lambda: step(2), tensors)
    return {
        "tensor_bytes": peak,
        "resident_bytes": after,
        "resident_before_bytes": before,
        "parameter_bytes": parameter_bytes,
    }


if __name__ == "__main__":
    from fedkd.recipe import load_recipe

    print(json.dumps(in_this_process(load_recipe(sys.argv[4]), sys.argv[1], int(sys.argv[2]), sys.argv[3])))
