"""Every planner answers `plan(requests, system)` with one plan a request, and none imports what learns or draws."""

import subprocess
import sys

import numpy as np
import pytest

from fedkd.planning import condition, denoising, offload, split
from fedkd.planning.condition import ConditionRequest, ConditionSystem
from fedkd.planning.denoising_requests import EXAMPLE, DenoisingRequest, DenoisingSystem, asked
from fedkd.planning.offload import OffloadRequest, OffloadSystem, oqc_problem
from fedkd.planning.quality import QualitySurface
from fedkd.planning.split import SplitRequest, SplitSystem
from fedkd.planning.system import EUCI_DEVICE, EUCI_EDGE, EUCI_LINK, SD_1_5, PlanningError

PROFILE = QualitySurface().profile(30)
OQC = oqc_problem(30, 100)
USERS = [DenoisingRequest(**user) for user in EXAMPLE["users"]]
ASKED = {
    "split": (
        split.plan,
        [SplitRequest(20), SplitRequest(10)],
        SplitSystem(SD_1_5, EUCI_DEVICE, EUCI_EDGE, EUCI_LINK),
    ),
    "offload": (
        offload.plan,
        [OffloadRequest(*rates) for rates in zip(OQC.error_decay, OQC.utility_growth, strict=True)],
        OffloadSystem(100),
    ),
    "denoising": (denoising.plan, USERS, DenoisingSystem(PROFILE)),
    "condition": (
        condition.plan,
        [ConditionRequest(0.8, 0.7, 1e7), ConditionRequest(0.2, 0.7, 1e6)],
        ConditionSystem(PROFILE),
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_each_request_gets_a_plan_that_names_the_edge(name):
    plan, requests, system = ASKED[name]
    plans = plan(requests, system)
    assert len(plans) == len(requests)
    assert {each.edge for each in plans} == {EUCI_EDGE.name}
    assert all(each.reasons and each.delay_s > 0 for each in plans)


def test_offload_plans_are_the_known_optimum():
    found, solution = offload.plan(*ASKED["offload"][1:]), offload.solve(OQC)
    assert [each.num_inference_steps for each in found] == solution.steps.tolist()
    assert [each.device_steps == 0 for each in found] == solution.at_edge.tolist()


@pytest.mark.parametrize("joint", [False, True])
def test_denoising_plans_are_those_of_the_same_users_in_a_file(joint):
    mine = denoising.plan(USERS, DenoisingSystem(PROFILE, joint=joint))
    _, theirs = denoising.allocate(asked(EXAMPLE, PROFILE, joint=joint).problem)
    assert [(each.edge_steps, each.device_steps) for each in mine] == [
        (each.edge_steps, each.device_steps) for each in theirs
    ]
    assert all(each.condition for each in mine)


def test_condition_plans_differ_as_their_users_do():
    first, second = condition.plan(*ASKED["condition"][1:])
    assert first.condition != second.condition
    assert np.isfinite([first.quality, second.quality]).all()


@pytest.mark.parametrize("name", ["offload", "denoising", "condition"])
def test_nobody_is_nobody_to_plan_for(name):
    plan, _, system = ASKED[name]
    with pytest.raises(PlanningError):
        plan([], system)


def test_no_module_of_planning_imports_torch_or_scipy_or_gymnasium():
    code = (
        "import importlib, pkgutil, sys, fedkd.planning\n"
        "for each in pkgutil.walk_packages(fedkd.planning.__path__, 'fedkd.planning.'):\n"
        "    importlib.import_module(each.name)\n"
        "print([name for name in ('torch', 'diffusers', 'gymnasium', 'scipy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
