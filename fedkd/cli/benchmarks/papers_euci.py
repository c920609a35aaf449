"""EUCI Fig. 8 beside what its equations give: energy and delay of the device alone, the edge alone, and together."""

from __future__ import annotations

from fedkd.cli.benchmarks.request import Request
from fedkd.cli.benchmarks.result import Rows, Shown, Table, at_least, at_most
from fedkd.planning.system import EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, EUCI_STEPS, SD_1_5, Cost, cost

# Fig. 8 as the text of section VI-C reads it off: energy "in W", and delays as multiples of each other
PAPER_ENERGY = {"edge only": 1.58, "user only": 1.3, "EUCI": 0.7}
PAPER_USER_BY_EDGE, PAPER_USER_BY_EUCI = 20.0, 10.0
SHARES = {"edge only": 0, "EUCI": EUCI_STEPS // 2, "user only": EUCI_STEPS}
# (device steps, guidance) -> (J, s), derived once, independently of this project
ACCEPTED = {
    (0, False): (30.961, 0.119),
    (55, False): (28.281, 2.696),
    (110, False): (25.449, 5.346),
    (0, True): (61.066, 0.186),
    (55, True): (55.706, 5.336),
    (110, True): (50.193, 10.545),
}
RATIO = 1.2166


def tables_and_shows(request: Request) -> tuple[list[Table], list[Shown]]:
    """Fig. 8 (a) and (b) beside ours, and what of them reproduces."""
    ratio = as_printed_j(0) / as_printed_j(EUCI_STEPS)
    off = [
        100 * abs(found / wanted - 1)
        for (steps, guidance), accepted in ACCEPTED.items()
        for found, wanted in zip(_energy_and_delay(steps, guidance), accepted, strict=True)
    ]
    energies = [euci(steps, False).energy_j for steps in range(EUCI_STEPS + 1)]
    ends = min(energies[0], energies[-1])
    request.say(
        f"EUCI: the edge alone takes {ratio:.4f} times the device's energy; the figure says {_printed_ratio():.4f}"
    )
    shows = [
        at_most("EUCI Fig. 8(a): edge only / user only, distance from 1.2166", abs(ratio - RATIO), 0.001),
        at_most("EUCI Fig. 8: energies and delays of its setting, distance from the accepted ones (%)", max(off), 1.0),
        at_least("EUCI Fig. 8(a): the least energy of all splits / the least of both ends", min(energies) / ends, 1.0),
        at_most(
            "EUCI Fig. 8(a): the most that a split saves of the edge's energy, distance from 17.8%",
            abs(100 * (1 - ends / energies[0]) - 17.8),
            0.05,
        ),
    ]
    return [energy_table(), delay_table()], shows


def notes(request: Request) -> list[str]:
    """What the paper's own equations cannot give."""
    share = PAPER_ENERGY["EUCI"] / PAPER_ENERGY["edge only"]
    fewest, most = (steps_for_the_printed_energy(on_device) for on_device in (False, True))
    user = euci(EUCI_STEPS, False).delay_s
    alike = min(range(EUCI_STEPS + 1), key=lambda t: abs(user / euci(t, False).delay_s - PAPER_USER_BY_EUCI))
    plain, guided = (euci(EUCI_STEPS, guidance).delay_s / euci(0, guidance).delay_s for guidance in (False, True))
    return [
        "EUCI Fig. 8(a): 'less than 0.7' for EUCI cannot come from Eq. 2: energy is linear in t, so no split of 110 "
        f"steps costs less than both ends; {share:.2f} of the edge's energy is what {fewest} steps at the edge or "
        f"{most} on the device take, so EUCI ran some 50 steps in all where the others ran 110",
        "EUCI Fig. 8(a): 1.58/1.3 comes from Eq. 2 for any FLOPs: it is (P_b/C_b)/(P_n/C_n); the unit printed is W, "
        "and the energies of its setting are joules",
        "EUCI Fig. 8(b): 'nearly 20 times' cannot come from Eqs. 3-4 and its setting: they give "
        f"{plain:.1f}, with guidance {guided:.1f}; '10 times longer than EUCI' is a split with t = {alike}",
        f"EUCI Eq. 3 as printed (W S / L) gives {as_printed_network_s():.2g} s for one picture: inverted in W and in L",
    ]


def energy_table() -> Table:
    """Fig. 8(a)."""
    rows: Rows = {}
    for who, steps in SHARES.items():
        rows[who] = {
            "paper (W)": [PAPER_ENERGY[who]],
            "ours (J)": [euci(steps, False).energy_j],
            "ours, guidance (J)": [euci(steps, True).energy_j],
            "Eq. 2 as printed (J)": [as_printed_j(steps)],
            "paper / user only": [PAPER_ENERGY[who] / PAPER_ENERGY["user only"]],
            "ours / user only": [euci(steps, False).energy_j / euci(EUCI_STEPS, False).energy_j],
        }
    title = "EUCI Fig. 8(a): energy of a picture, 110 steps (EUCI: t = 55; the paper: less than 0.7)"
    ratios = ["paper / user only", "ours / user only"]  # not J: left out of the chart
    return Table(title, list(rows["EUCI"]), rows, plain=True, plain_columns=ratios, digits=3, chart="bars")


def delay_table() -> Table:
    """Fig. 8(b)."""
    rows: Rows = {}
    printed = {"edge only": 1 / PAPER_USER_BY_EDGE, "EUCI": 1 / PAPER_USER_BY_EUCI, "user only": 1.0}
    for who, steps in SHARES.items():
        rows[who] = {
            "paper / user only": [printed[who]],
            "ours / user only": [euci(steps, False).delay_s / euci(EUCI_STEPS, False).delay_s],
            "ours (s)": [euci(steps, False).delay_s],
            "ours, guidance (s)": [euci(steps, True).delay_s],
        }
    title = "EUCI Fig. 8(b): delay of a picture, 110 steps (EUCI: t = 55)"
    return Table(title, list(rows["EUCI"]), rows, plain=True, digits=3)


def euci(device_steps: int, guidance: bool, total: int = EUCI_STEPS) -> Cost:
    """One picture in EUCI's setting."""
    return cost(
        SD_1_5,
        EUCI_DEVICE,
        EUCI_EDGE,
        EUCI_LINK,
        num_inference_steps=total,
        device_steps=device_steps,
        guidance=guidance,
    )


def as_printed_j(device_steps: int) -> float:
    """EUCI Eq. 2 as printed: text encoder and VAE at every step (J)."""
    flop = SD_1_5.unet_flop + SD_1_5.text_encoder_flop + SD_1_5.vae_flop
    device, edge = EUCI_DEVICE, EUCI_EDGE
    on_device = device_steps * flop / device.flops_per_s * device.watts
    return on_device + (EUCI_STEPS - device_steps) * flop / edge.flops_per_s * edge.watts


def as_printed_network_s() -> float:
    """EUCI Eq. 3 as printed, W·(S_X + S_I)/L, in bits: no UNet sent, the model cached."""
    return EUCI_LINK.bandwidth_bps * 8 * (SD_1_5.latents_bytes + SD_1_5.image_bytes) / EUCI_LINK.distance_m


def steps_for_the_printed_energy(on_device: bool) -> int:
    """The most steps in all, at one end, that cost the printed share of what 110 cost the edge."""
    most_j = PAPER_ENERGY["EUCI"] / PAPER_ENERGY["edge only"] * euci(0, False).energy_j
    found = (total for total in range(EUCI_STEPS, 0, -1) if euci(total * on_device, False, total).energy_j <= most_j)
    return next(found, 0)


def _printed_ratio() -> float:
    return PAPER_ENERGY["edge only"] / PAPER_ENERGY["user only"]


def _energy_and_delay(device_steps: int, guidance: bool) -> tuple[float, float]:
    found = euci(device_steps, guidance)
    return found.energy_j, found.delay_s
