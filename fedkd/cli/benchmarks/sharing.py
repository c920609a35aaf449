"""`fedkd bench sharing`: denoising steps that similar prompts share, what they save and what they cost (CDDAA).

The policy learns from pairs of prompts, which are kept, and is judged on streams of requests that it has not seen.
"""

from __future__ import annotations

from fedkd.cli.benchmarks import sharing_channel, sharing_curves, sharing_stream
from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Result, Rows, Table, at_least, at_most
from fedkd.cli.benchmarks.sharing_studio import STEPS, Studio
from fedkd.inference.prompt_embedding import DENOISER, TEXT_ENCODER
from fedkd.planning.sharing_policy import LEAST_PAIRS, SharingPolicy

SEEDS = (0, 1)
# Pairs of each kind, requests of a stream, and pairs whose latents cross the noisy link; each by seed.
SIZES, QUICK_SIZES = {"pairs": 80, "requests": 400, "noisy": 16}, {"pairs": 2, "requests": 12, "noisy": 2}
# Of the issue: at least 30% of the UNet's steps saved, at most 1 point of prompt accuracy lost.
SAVED, LOST = 0.30, 0.01


def run(request: Request) -> Result:
    """The profile, the policy that follows from it on streams of requests, and shared latents over a noisy link."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(request)
    finally:
        torch.set_num_threads(threads)


def sizes(request: Request) -> dict[str, int]:
    """How much is drawn, `pairs=80`, `requests=400` and `noisy=16` among the overrides; ValueError for others."""
    found = dict(QUICK_SIZES if request.quick else SIZES)
    for each in request.overrides:
        name, _, value = each.partition("=")
        if name not in found or not value.isdecimal() or int(value) < 1:
            raise ValueError(f"{each} is no size of this benchmark; give {', '.join(f'{key}=N' for key in found)}")
        found[name] = int(value)
    return found


def _run(request: Request) -> Result:
    size, quick = sizes(request), request.quick
    studio = Studio()
    seeds = list(SEEDS[:1] if quick else SEEDS)
    curves = []
    for seed in seeds:
        curves.append(sharing_curves.kept(studio, size["pairs"], seed, request.out))
        request.say(f"pairs, seed {seed}: drawn in every number of shared steps")
    request.out.mkdir(parents=True, exist_ok=True)
    path = request.out / "sharing-profile.json"
    policies = {}
    for name, by in (("learned policy", DENOISER), ("learned policy, text encoder", TEXT_ENCODER)):
        profile = sharing_curves.profile_of(curves, studio, by)
        policies[name] = SharingPolicy(profile, LOST, least_pairs=1 if quick else LEAST_PAIRS)
    policies["learned policy"].profile.save(path)
    rows: Rows = {}
    for seed in seeds:
        for name, found in sharing_stream.compared(studio, size["requests"], seed, policies).items():
            for column, value in found.items():
                rows.setdefault(name, {}).setdefault(column, []).append(value)
        request.say(f"stream, seed {seed}: {100 * rows['learned policy']['steps saved'][-1]:.1f}% of steps saved")
    columns = list(rows["learned policy"])
    streams = Table(
        "A stream of requests (Zipf over captions, paraphrases and swaps)",
        columns, rows, plain_columns=["PSNR (dB)", "SSIM"], digits=2, chart="bars",
    )  # fmt: skip
    channel = sharing_channel.tables(studio, size["noisy"], seeds)
    learned = rows["learned policy"]
    saved, lost = (sum(learned[name]) / len(seeds) for name in ("steps saved", "accuracy lost"))
    shows = [
        at_least("UNet steps that the learned policy saves on the stream (%)", 100 * saved, 100 * SAVED),
        at_most("points of prompt accuracy that it loses", 100 * lost, 100 * LOST),
    ]
    return Result(
        "sharing",
        request.command,
        seeds,
        [*sharing_curves.tables(curves), streams, *channel],
        shows,
        [*_notes(policies), f"{path}: the profile, for `fedkd serve --share`", *sharing_curves.sheets(studio, request)],
    )


def _notes(policies: dict[str, SharingPolicy]) -> list[str]:
    said = []
    for name, policy in policies.items():
        edges = policy.profile.edges
        table = ", ".join(f"{k} from {edge:g}" for edge, k in zip(edges, policy.table, strict=True))
        said.append(
            f"{name}: shared steps of {STEPS} by similarity, learned from {int(policy.profile.count[:, 0].sum())} "
            f"pairs at {100 * policy.allowed_loss:g} point of accuracy and {policy.certainty:g} standard error: {table}"
        )
    return [
        *said,
        "similarity is of what the denoiser makes of two prompts; the step that tells it is taken off the steps saved, "
        "once for each prompt. The text encoder's similarity costs no step",
        "accuracy lost, PSNR and SSIM: against the same prompt and noise drawn alone; 'accuracy alone' is theirs, and "
        "'unshared' has noise of its own for each request",
    ]
