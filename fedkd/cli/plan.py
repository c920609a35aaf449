"""`fedkd plan`: how many steps, where, for whom: the planners' verbs."""

from __future__ import annotations

import typer

from fedkd.cli.plan_condition import condition
from fedkd.cli.plan_denoising import denoising
from fedkd.cli.plan_dispatch import dispatch
from fedkd.cli.plan_dispatch_train import dispatch_train
from fedkd.cli.plan_offload import offload
from fedkd.cli.plan_profile import profile
from fedkd.cli.plan_profile_conditions import profile_conditions
from fedkd.cli.plan_split import split

plan = typer.Typer(
    help="Plan before drawing: how many steps, where, for whom, and what that costs.\n\n"
    "Figures come from profiles of machines: shipped ones, or measured with `fedkd plan profile`.\n\n"
    "Example: fedkd plan split --steps 110 --no-guidance --delay-limit 1",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
plan.command("split")(split)
plan.command("offload")(offload)
plan.command("denoising")(denoising)
plan.command("condition")(condition)
plan.command("dispatch")(dispatch)
plan.command("dispatch-train")(dispatch_train)
plan.command("profile")(profile)
plan.command("profile-conditions")(profile_conditions)
