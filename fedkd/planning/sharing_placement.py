"""Where the shared steps run: at the edge, on one of two devices, or in a cluster (CDDAA 'Wireless Network
Architecture'), and what each costs in steps, bytes, seconds and joules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedkd.planning.machines import Device, Link, ModelCost, PlanningError

TOPOLOGIES = ("unshared", "edge_to_many", "device_to_device", "cluster")


@dataclass(frozen=True)
class Placement:
    """A group's pictures, drawn one way; nobody but its member ever holds a finished picture.

    `shared_by` names the machine that runs the `shared_steps` ('' for none). `steps` are all that is run, `saved`
    what the group is spared; `sent_bytes` crosses links. `delays_s` (members,) end with each picture, `delay_s` with
    the last; `energy_j` counts computing and radios.
    """

    topology: str
    shared_by: str
    shared_steps: int
    steps: int
    saved: int
    sent_bytes: int
    delays_s: tuple[float, ...]
    energy_j: float

    @property
    def delay_s(self) -> float:
        """Seconds until the last picture."""
        return max(self.delays_s)


def placements(
    model: ModelCost,
    devices: Sequence[Device],
    *,
    num_inference_steps: int,
    shared_steps: int,
    guidance: bool,
    edge: Device | None = None,
    link: Link | None = None,
    peers: Link | None = None,
) -> list[Placement]:
    """All ways that the machines at hand allow, the soonest first; 'unshared' is always among them.

    `link` joins the edge with each device, `peers` joins devices. Each device encodes, finishes and decodes its own
    picture; the edge sends it latents with embeddings, since the prompt was encoded there. Messages of one sender go
    one after the other. A group of one shares nothing. PlanningError for no devices or steps that cannot be.
    """
    if not devices:
        raise PlanningError("devices=() is no group; give at least one device")
    if not 0 <= shared_steps < num_inference_steps:
        raise PlanningError(f"shared_steps={shared_steps} is out of range; give 0 to {num_inference_steps - 1}")
    job = _Group(model, tuple(devices), num_inference_steps, shared_steps if len(devices) > 1 else 0, guidance)
    found = [job.unshared()]
    if job.shared and edge is not None and link is not None:
        found.append(job.from_edge(edge, link))
    if job.shared and peers is not None:
        topology = "device_to_device" if len(devices) == 2 else "cluster"
        found += [job.from_device(topology, place, peers) for place in range(len(devices))]
    return sorted(found, key=lambda each: (each.delay_s, each.energy_j))


@dataclass(frozen=True)
class _Group:
    model: ModelCost
    devices: tuple[Device, ...]
    total: int
    shared: int
    guidance: bool

    def _run_s(self, machine: Device, steps: int) -> float:
        return steps * machine.step_s(self.model.unet_flop, self.guidance)

    def _encode_s(self, machine: Device) -> float:
        return machine.encode_s(self.model.text_encoder_flop)

    def _own_s(self, machine: Device, steps: int) -> float:
        return self._run_s(machine, steps) + machine.decode_s(self.model.vae_flop)

    def unshared(self) -> Placement:
        """Everybody alone."""
        times = [self._encode_s(each) + self._own_s(each, self.total) for each in self.devices]
        energy = sum(each.watts * seconds for each, seconds in zip(self.devices, times, strict=True))
        return self._made("unshared", "", 0, times, 0, energy)

    def from_edge(self, edge: Device, link: Link) -> Placement:
        """Edge to multiple devices: the edge encodes all prompts and runs the shared steps."""
        size = self.model.latents_bytes + self.model.embedding_bytes * (2 if self.guidance else 1)
        edge_s = len(self.devices) * self._encode_s(edge) + self._run_s(edge, self.shared)
        times, energy, sent_at = list[float](), edge.watts * edge_s, edge_s
        for device in self.devices:
            sent_at += edge.message_s + 8 * size / link.bandwidth_bps
            arrived = sent_at + link.delay_s(0) + device.message_s
            own_s = self._own_s(device, self.total - self.shared)
            times.append(arrived + own_s)
            energy += device.watts * own_s + device.receive_watts * 8 * size / link.bandwidth_bps
        return self._made("edge_to_many", edge.name, self.shared, times, size * len(self.devices), energy)

    def from_device(self, topology: str, head: int, peers: Link) -> Placement:
        """One device runs the shared steps of its own prompt, hands latents on, and then finishes its picture."""
        size, first = self.model.latents_bytes, self.devices[head]
        shared_s = self._encode_s(first) + self._run_s(first, self.shared)
        air_s = 8 * size / peers.bandwidth_bps
        times, sent_at, energy = [0.0] * len(self.devices), shared_s, first.watts * shared_s
        for place, device in enumerate(self.devices):
            if place == head:
                continue
            sent_at += first.message_s + air_s
            arrived = sent_at + peers.delay_s(0) + device.message_s
            own_s = self._own_s(device, self.total - self.shared)
            # its own prompt is encoded while it waits
            times[place] = max(arrived, self._encode_s(device)) + own_s
            energy += device.watts * (self._encode_s(device) + own_s)
            energy += (first.send_watts + device.receive_watts) * air_s
        own_s = self._own_s(first, self.total - self.shared)
        times[head] = sent_at + own_s
        energy += first.watts * own_s
        return self._made(topology, first.name, self.shared, times, size * (len(self.devices) - 1), energy)

    def _made(self, topology: str, by: str, shared: int, times: list[float], sent: int, energy: float) -> Placement:
        members = len(self.devices)
        steps = shared + members * (self.total - shared) if shared else members * self.total
        return Placement(topology, by, shared, steps, members * self.total - steps, sent, tuple(times), energy)
