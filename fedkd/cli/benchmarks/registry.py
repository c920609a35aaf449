"""`fedkd bench registry`: kills, full disks and damaged blobs; bytes of a second version; pull against curl."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Table, at_least, at_most

KILLS, QUICK_KILLS = 520, 20
SECOND_BOUND, CURL_BOUND = 3.0, 0.7
TOKEN = "benchmark"
TINY_RANK, RANK = 2, 64  # the largest of our recipes for Stable Diffusion
SHIPPED_MODEL = Path(__file__).resolve().parents[3] / "checkpoints" / "tiny-sd"


def run(request: Request) -> Result:
    """Faults first, then bytes, throughput, many pulls at once and trust; `kills=N` as override sets their number."""
    from fedkd.cli.benchmarks import registry_transfer as transfer
    from fedkd.cli.benchmarks.registry_faults import Site
    from fedkd.cli.benchmarks.registry_student import base_and_student, stable_diffusion
    from fedkd.cli.benchmarks.registry_trials import Trials, rows
    from fedkd.cli.benchmarks.registry_trust import pixels_apart, refusals

    kills = wanted(request)
    folder = Path(tempfile.mkdtemp(prefix="fedkd-registry-"))
    try:
        (folder / "cloud").mkdir()
        with transfer.served(folder / "cloud", TOKEN) as url:
            trials = Trials(Site(folder, url, TOKEN), request.say)
            trials.kills(kills)
            really_full = trials.full_disks(max(6, kills // 10))
            trials.damaged_blobs(max(6, kills // 20))
        request.say(trials.total())
        tiny, notes = transfer.bytes_moved(base_and_student(SHIPPED_MODEL, folder / "tiny", TINY_RANK), folder, TOKEN)
        moved: dict[str, tuple[int, int]] = {}
        if not request.quick:
            request.say("two versions of Stable Diffusion 1.5's size")
            large = base_and_student(stable_diffusion(folder / "sd15"), folder / "large", RANK)
            moved, _ = transfer.bytes_moved(large, folder, TOKEN, bucket=False)  # too slow a bucket for gigabytes
            for used in (large.root, folder / "sd15"):
                shutil.rmtree(used)
        speeds = transfer.throughput(
            folder, TOKEN, (128 if request.quick else 256) * 2**20, repeats=3 if request.quick else 5
        )
        request.say(f"pull has {100 * transfer.share_of_curl(speeds):.0f}% of curl's throughput")
        transfers, succeeded = transfer.at_once(folder, TOKEN, trials.children.context)
        offered, refused = refusals(folder)
        apart = pixels_apart(SHIPPED_MODEL, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    result = Result(request.name, request.command, [0], [])
    faults = dict(rows(trials))
    columns = list(next(iter(faults.values())))
    result.tables.append(Table("Faults, and what came of them", columns, faults, plain=True, digits=0))
    both = {f"tiny-sd, rank {TINY_RANK}": tiny, f"Stable Diffusion 1.5's size, rank {RANK}": moved}
    sizes = {
        f"{model}, {place}": {"first": [one / 1e6], "second": [two / 1e6], "share %": [100 * two / one]}
        for model, places in both.items()
        for place, (one, two) in places.items()
    }
    result.tables.append(
        Table(
            "Megabytes that two versions move which differ in the LoRA",
            ["first", "second", "share %"],
            sizes,
            plain=True,
            digits=3,
        )
    )
    rates = {who: {"MB/s": values} for who, values in speeds.items()}
    result.tables.append(Table("Throughput over loopback HTTP", ["MB/s"], rates, plain=True, digits=0))
    killed = sum(counts["touch"] + counts["moment"] for counts in trials.counts.values())
    damage = trials.damage.values()
    result.shows = [
        at_least("kill -9 at random points in publish, pull, swap and gc", killed, kills),
        at_most("corrupt versions loadable", sum(found.corrupt for found in damage), 0),
        at_most("published versions lost", sum(found.lost for found in damage), 0),
        at_most("operations that fail on what a fault left", sum(found.stuck for found in damage), 0),
        *(
            at_most(
                f"bytes of a second version in which only the LoRA changed, {place} (% of the first)",
                100 * two / one,
                SECOND_BOUND,
            )
            for place, (one, two) in (tiny | moved).items()
        ),
        at_least("throughput of pull over loopback HTTP (share of curl's)", transfer.share_of_curl(speeds), CURL_BOUND),
        at_most("transfers of a model that one edge pulls 32 times at once", transfers, 1.01),
        at_least("of these pulls succeed", succeeded, transfer.PULLS),
        at_least(
            "versions of another key, with a flipped bit or a pickle refused, the old one served", refused, offered
        ),
        at_most("pixel values in which the registry's and the pulled model draw other than the published", apart, 0),
    ]
    full = "a file system in memory that was full, and writes" if really_full else "writes"
    result.notes = [f"full disk: {full} that the system failed midway (RLIMIT_FSIZE)", *notes]
    return result


def wanted(request: Request) -> int:
    """How many kills: 520, 20 when quick, or what `kills=N` says; CheckpointError for any other override."""
    from fedkd.checkpoints.manifest import CheckpointError

    number = QUICK_KILLS if request.quick else KILLS
    for override in request.overrides:
        key, _, value = override.partition("=")
        if key != "kills" or not value.isdecimal() or int(value) < 1:
            raise CheckpointError(f"'{override}' is nothing that this benchmark knows; give kills=N, N at least 1")
        number = int(value)
    return number
