"""`fedkd bench step-cost`: seconds and memory of a distillation step against the number of teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedkd.cli.benchmarks.cells import Cell, Facts, carry_out_all, number
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Shown, Table, at_most

COUNTS = (1, 2, 4, 8, 16)
SD15_COUNTS = (1, 2, 4, 8, 16)
QUICK_COUNTS = (1, 2)
MEMORY_BOUND, TIME_BOUND = 1.25, 1.3
CARD_BYTES = 24e9
TIMES = "step seconds"


def run(request: Request) -> Result:
    """The steps alone; with `--size sd15` Stable Diffusion 1.5's own UNet with random weights."""
    from fedkd.recipe import load_recipe

    recipe = load_recipe("quickstart", request.overrides)
    folder = request.out / "step-cost" / request.size
    found = carry_out_all(
        keys(request),
        lambda key: cell(recipe, folder, request, *key).carry_out(),
        jobs=1,
        threads=recipe.run.threads,
        say=lambda key, facts: request.say(f"{key[1]}, {key[0]}: {facts.get('failed', 'measured')}"),
    )
    result = Result(request.name, request.command, [recipe.run.seed], tables(request, found))
    result.shows = shows(request, found)
    result.notes = notes(recipe, request)
    return result


def counts(request: Request) -> tuple[int, ...]:
    """Numbers of teachers."""
    if request.quick:
        return QUICK_COUNTS
    return SD15_COUNTS if request.size == "sd15" else COUNTS


def keys(request: Request) -> list[tuple[str, str]]:
    """(what, variant) of every measurement; `what` is a number of teachers for memory, or TIMES."""
    return [*memory_keys(request), *time_keys()]


def memory_keys(request: Request) -> list[tuple[str, str]]:
    """Those that may run beside other work."""
    from fedkd.cli.benchmarks.step_variants import VARIANTS

    return [(str(count), variant) for variant in VARIANTS for count in counts(request)]


def time_keys() -> list[tuple[str, str]]:
    """Those that want the machine for themselves."""
    from fedkd.cli.benchmarks.step_variants import VARIANTS

    return [(TIMES, variant) for variant in VARIANTS]


def cell(recipe: Any, folder: Path, request: Request, what: str, variant: str) -> Cell:
    """The cell of one measurement."""
    size, numbers = request.size, counts(request)

    def measure(this: Cell) -> Facts:
        from fedkd.cli.benchmarks import step_memory, step_variants

        try:
            if what == TIMES:
                repeats = 2 if request.quick else step_variants.REPEATS
                found = step_variants.seconds(this.recipe, size, variant, numbers, repeats)
                return {str(count): value for count, value in found.items()}
            return dict(step_memory.measure(this.recipe, variant, int(what), size))
        except RuntimeError as error:  # a card that is too small
            raise ValueError(str(error)) from error

    name = f"step {what} {variant} {'quick' if request.quick else ''} {size}"
    return Cell(name.strip().replace(",", "").replace(" ", "-"), recipe, measure, folder)


def tables(request: Request, found: dict[Any, Facts]) -> list[Table]:
    """Seconds, tensor bytes, resident growth and weights by variant and number of teachers."""
    from fedkd.cli.benchmarks.step_variants import VARIANTS

    columns = [str(count) for count in counts(request)]

    def table(title: str, value: Any, digits: int, chart: str = "") -> Table:
        rows = {v: {c: [x] for c in columns if (x := value(v, c)) == x} for v in VARIANTS}
        return Table(title, columns, rows, plain=True, digits=digits, chart=chart, across="teachers B")

    def megabytes(field: str) -> Any:
        return lambda variant, column: number(found.get((column, variant)), field) / 1e6

    def grown(variant: str, column: str) -> float:
        facts = found.get((column, variant))
        return (number(facts, "resident_bytes") - number(facts, "resident_before_bytes")) / 1e6

    return [
        table("Seconds a distillation step, by teachers", lambda v, c: number(found.get((TIMES, v)), c), 3, "lines"),
        table("Peak memory of a step (MB, live tensors), by teachers", megabytes("tensor_bytes"), 1, "lines"),
        table("Growth of the process over a step (MB, resident set), by teachers", grown, 1),
        table("Weights and adapters (MB), by teachers", megabytes("parameter_bytes"), 2),
    ]


def shows(request: Request, found: dict[Any, Facts]) -> list[Shown]:
    """What is promised of our `sampled` step; on a GPU also that B = 8 fits in 24 GB."""
    from fedkd.cli.benchmarks.step_variants import OURS, SAMPLED

    first, last = str(counts(request)[0]), str(counts(request)[-1])

    def memory(variant: str, count: str) -> float:
        return number(found.get((count, variant)), "tensor_bytes")

    promised = []
    for variant in (SAMPLED, OURS):
        ratio = memory(variant, last) / memory(variant, first)
        promised.append(at_most(f"memory of a step at B={last} / B={first}, {variant}", ratio, MEMORY_BOUND))
    times = found.get((TIMES, SAMPLED))
    ratio = number(times, last) / number(times, first)
    promised.append(at_most(f"time of a step at B={last} / B={first}, {SAMPLED}", ratio, TIME_BOUND))
    if request.size == "sd15" and not request.quick:
        promised.append(at_most("SD 1.5, B=8, ours, all: bytes", memory(OURS, "8"), CARD_BYTES))
    return promised


def notes(recipe: Any, request: Request) -> list[str]:
    """How it was measured."""
    what = (
        "Stable Diffusion 1.5's UNet with random weights, 512², 8 pictures a step, gradient checkpointing"
        if request.size == "sd15"
        else f"{recipe.model.path}, {recipe.distillation.batch_size} pictures a step"
    )
    return [
        f"step cost: {what}, {recipe.run.dtype}, LoRA rank {recipe.distillation.lora.rank}, lambda uniform, "
        f"gamma {recipe.distillation.gamma:g}, {recipe.run.device}, {recipe.run.threads} thread(s); seconds are "
        "medians, the numbers of teachers taking turns",
        "memory: the most bytes of live tensors in a step (weights, adapters, optimiser, pictures, activations), "
        "counted at every operation (CUDA: max_memory_allocated), each in a fresh process; growth of the process is "
        "its peak resident set minus what it was after a small rehearsal, before the measured model was loaded; "
        "the interpreter's own size is in neither",
    ]
