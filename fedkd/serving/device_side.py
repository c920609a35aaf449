"""What a device keeps from picture to picture: its edges, what they serve, and its part of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import diffusers
import torch

from fedkd.models.pipeline import DTYPES
from fedkd.planning.system import EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, Device, Link
from fedkd.serving.device_model import DeviceModel, first_line
from fedkd.serving.fallback import check, one_after_another
from fedkd.serving.fetch import default_cache
from fedkd.serving.messages import ModelFacts
from fedkd.serving.protocol import Ask, EdgeError, EdgeLost, Steps


@dataclass
class DeviceSide:
    """What a device keeps from picture to picture: its edges, what they serve, and its part of the model."""

    edges: Sequence[str]
    local: DeviceModel
    patience_s: float = 30.0
    device_profile: Device = EUCI_DEVICE
    edge_profile: Device = EUCI_EDGE
    link: Link = EUCI_LINK
    current: str = ""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    speeds: WeakKeyDictionary[Any, float] = field(default_factory=WeakKeyDictionary)  # FLOP/s of denoisers here

    def __post_init__(self) -> None:
        self.current = self.current or self.edges[0]

    def from_current(self) -> list[str]:
        """All edges, the one that served last first."""
        place = self.edges.index(self.current)
        return [*self.edges[place:], *self.edges[:place]]

    def describe(
        self, edge: str, *, name: str | None = None, again: bool = False, digest: str = ""
    ) -> Steps[dict[str, Any]]:
        """What `edge` says of its model `name` (None: its default), in the version `digest` if that is given.

        EdgeLost when it is not for this device.
        """
        key = f"{edge} {name or ''}"
        if key not in self.models or again or digest:
            params = {"model": name} if name else {}
            params |= {"digest": digest} if digest else {}
            answer = check(edge, (yield Ask(edge, "GET", "/v1/model", params=params)))
            try:
                described = ModelFacts.model_validate_json(answer.content).model_dump()
                dtype, _ = described["dtype"], dict(described["scheduler"]["config"])
            except (ValueError, KeyError, TypeError) as error:
                raise EdgeLost(f"{edge} describes its model in a form this device cannot read") from error
            if dtype != self.local.dtype:
                raise EdgeLost(
                    f"the edge computes in {dtype}, this device in {self.local.dtype}; give both the same dtype"
                )
            self.models[key] = described
        return self.models[key]

    def describe_any(self) -> Steps[dict[str, Any]]:
        """What the first edge that answers says of its model."""
        return (
            yield from one_after_another(
                self.from_current(), self._settle_on, patience_s=self.patience_s, persist=False, notice=_unheard
            )
        )

    def prepare(self, decode: str, name: str | None = None) -> Steps[None]:
        """Fetch and load this device's part of the model `name` (None: the default), from the first edge with it."""

        def ready(edge: str) -> Steps[None]:
            model = yield from self._settle_on(edge, name)
            yield from self.local.denoiser(edge, model)
            if decode == "device":
                yield from self.local.decoder(edge, model)

        yield from one_after_another(
            self.from_current(), ready, patience_s=self.patience_s, persist=False, notice=_unheard
        )

    def same_build(self, model: dict[str, Any]) -> bool:
        """Whether `model`'s edge and this device promise the same bits: torch, diffusers, threads, device."""
        here = {
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "threads": torch.get_num_threads(),
            "device": self.local.device,
        }
        there = model.get("build") or {}
        return all(there.get(name) == value for name, value in here.items())

    def _settle_on(self, edge: str, name: str | None = None) -> Steps[dict[str, Any]]:
        model = yield from self.describe(edge, name=name)
        self.current = edge
        return model


class DeviceClient:
    """What the blocking and the async client have in common: how they are set up.

    `url` is the edge, `edges` those that take over when it is lost, in the order of preference.
    `device_checkpoint` is a diffusers folder whose (smaller) denoiser does the device's steps in place of
    the edge's. `patience_s` is how long to wait for an edge that is busy, or to come back in the middle of
    a picture. The profiles give the watts for the joules estimated, and with `link`
    what the planner reckons with. ValueError names what is wrong.
    """

    def __init__(
        self,
        url: str = "",
        *,
        edges: Sequence[str] = (),
        token: str = "",
        cache_dir: Path | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        timeout_s: float = 600.0,
        patience_s: float = 30.0,
        device_checkpoint: Path | str | None = None,
        device_profile: Device = EUCI_DEVICE,
        edge_profile: Device = EUCI_EDGE,
        link: Link = EUCI_LINK,
    ) -> None:
        given = list(dict.fromkeys(each.rstrip("/") for each in ([url] if url else []) + list(edges)))
        for each in given or [""]:
            if not each.startswith(("http://", "https://")):
                raise EdgeError(f"edge={each!r} is not a URL; give it as http://host:port")
        if dtype not in DTYPES:
            raise EdgeError(f"dtype={dtype!r} is not known; give one of {', '.join(DTYPES)}")
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise EdgeError(f"device={device!r} cannot be used here ({first_line(error)}); try 'cpu'") from error
        own = Path(device_checkpoint).expanduser() if device_checkpoint else None
        cache = Path(cache_dir) if cache_dir is not None else default_cache()
        local = DeviceModel(cache, device=device, dtype=dtype, checkpoint=own)
        self._side = DeviceSide(given, local, patience_s, device_profile, edge_profile, link)
        self._connect(token, timeout_s)

    def _connect(self, token: str, timeout_s: float) -> None:
        raise NotImplementedError

    @property
    def url(self) -> str:
        """The edge that serves at present."""
        return self._side.current

    @property
    def fetched_bytes(self) -> int:
        """Bytes of the model's files fetched by this client."""
        return self._side.local.fetched_bytes


def _unheard(_: str) -> None:
    """A notice that nobody waits for."""
