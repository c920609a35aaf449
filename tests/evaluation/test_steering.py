"""The ControlNet that ships steers: pictures have the edges that were asked for, and without it they do not."""

from __future__ import annotations

from fedkd.data.condition_maps import KINDS
from fedkd.data.digits import coloured_digits
from fedkd.evaluation.steering import followed
from fedkd.models.controlnet_folder import find_controlnet, load_controlnet
from fedkd.models.pipeline import load_pipeline


def test_the_shipped_controlnet_steers_handwriting_it_has_not_seen() -> None:
    pipe = load_pipeline("tiny-sd", scheduler="DDIMScheduler")
    found = find_controlnet("tiny-sd-canny", KINDS)
    assert found.kind == "canny" and found.digest
    rows = [row for row in coloured_digits("judge", 32, 5) if int(str(row["label"])) < 7][:12]
    steered, free = followed(pipe, load_controlnet(found, pipe.unet), rows, seed=0, steps=6)
    assert steered > 0.75 > 0.7 > free
