"""Who goes to the edge and with how many steps: the problem P1 of OQC, its costs and a solution's shape."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fedkd.planning.system import PlanningError

if TYPE_CHECKING:
    from fedkd.planning.plan import Plan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_STEPS = 10_000
PER_USER = ("device_step_s", "edge_step_s", "device_hz", "edge_hz", "device_power", "edge_power")
WEIGHTS = ("time_weight", "error_weight", "energy_weight", "cost_weight", "utility_weight")
COUNTS = ("device_most_steps", "edge_most_steps", "least_steps")


@dataclass(frozen=True, eq=False)
class OffloadProblem:
    """N users, one edge: `min Σ_n R_n,a(s)` under `Σ a_n s_n <= edge_budget_steps` (OQC Eqs. 1, 2, 8, 9).

    `R_r(s) = w1 (c1 Δt_r s + c2 e^(-C1 s) + c3 κ f_r³ Δt_r s) - w2 (1 - e^(-C2 s))`, r the device or the edge
    (OQC Eqs. 3-7). `error_decay` and `utility_growth` are C1 and C2, (N,), per step. Any other field but the
    budget and the weights is one number or (N,): seconds a step (Δt), clock in Hz (f), `*_power` in W/Hz³ (κ; the
    paper's 10^-2 counts GHz: in Hz the edge would cost 1e27 times more and nothing would ever be offloaded),
    most steps on either side, and the fewest steps that make a picture. A user whose device cannot run
    `least_steps` needs the edge, one whom the edge may not give that many stays on its device.
    Raises PlanningError, in one line, when a field cannot be or the budget cannot hold those who need the edge.
    """

    error_decay: Floats
    utility_growth: Floats
    edge_budget_steps: int
    device_most_steps: Any = 10
    edge_most_steps: Any = 20
    least_steps: Any = 1
    device_step_s: Any = 1 / 500
    edge_step_s: Any = 1 / 1000
    device_hz: Any = 1.5e9
    edge_hz: Any = 10e9
    device_power: Any = 1e-29
    edge_power: Any = 1e-29
    time_weight: float = 1 / 3
    error_weight: float = 1 / 3
    energy_weight: float = 1 / 3
    cost_weight: float = 0.3
    utility_weight: float = 0.7
    users: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        first = _array("error_decay", self.error_decay, float)
        if first.ndim != 1 or first.size == 0:
            raise PlanningError(f"error_decay has shape {first.shape}, no user; give one number a user, at least one")
        object.__setattr__(self, "users", int(first.size))
        for name in ("error_decay", "utility_growth", *PER_USER):
            above_zero = name in PER_USER and not name.endswith("_power")
            self._keep(name, float, "greater than 0" if above_zero else "0 or more", 0.0, above_zero)
        for name in ("error_decay", "utility_growth"):
            if getattr(self, name).shape != (self.users,):
                raise PlanningError(f"{name} is one number; give {self.users}, one a user, as in error_decay")
        for name in WEIGHTS:
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not np.isfinite(value) or value < 0:
                raise PlanningError(f"{name}={value!r} is not a weight; give a finite number, 0 or more")
        for name in COUNTS:
            self._keep(name, int, "0 or more", 0, False, MOST_STEPS)
        if int(np.max(self.edge_most_steps)) < 1 and int(np.max(self.device_most_steps)) < 1:
            raise PlanningError("device_most_steps=0 and edge_most_steps=0 leave no step; give at least 1 of either")
        budget = _array("edge_budget_steps", self.edge_budget_steps, int)
        if budget.ndim != 0 or budget < 0:
            raise PlanningError(f"edge_budget_steps={self.edge_budget_steps} is not a budget; give 0 steps or more")
        object.__setattr__(self, "edge_budget_steps", int(budget))
        self._check_limits()

    def _keep(self, name: str, kind: type, words: str, least: float, above: bool, most: float = np.inf) -> None:
        """Set the field to an array of one or N numbers that lie in their range."""
        values = _array(name, getattr(self, name), kind)
        if values.ndim > 1 or values.size not in (1, self.users) or (values.ndim == 1 and values.size != self.users):
            raise PlanningError(f"{name} has shape {values.shape}; give one number or {self.users}, one a user")
        wrong = ~((values > least) if above else (values >= least)) | ~np.isfinite(values) | (values > most)
        if wrong.any():
            place = int(np.argmax(wrong))
            where = f"[{place}]" if values.ndim else ""
            limit = f" and at most {most:g}" if np.isfinite(most) else ""
            raise PlanningError(f"{name}{where}={values.flat[place]:g} cannot be; give a number {words}{limit}")
        object.__setattr__(self, name, values)

    def _check_limits(self) -> None:
        least, device, edge = (np.asarray(getattr(self, n)) for n in ("least_steps", *COUNTS[:2]))
        stuck = np.broadcast_to((device < least) & (edge < least), (self.users,))
        if stuck.any():
            n = int(np.argmax(stuck))
            most = int(np.maximum(*(np.broadcast_to(each, (self.users,))[n] for each in (device, edge))))
            wanted = int(np.broadcast_to(least, (self.users,))[n])
            raise PlanningError(
                f"least_steps={wanted} for user {n} is more than device_most_steps and edge_most_steps allow; "
                f"give at most {most}, or raise one of them to {wanted}"
            )
        if self.least_edge_steps > self.edge_budget_steps:
            only_edge = int(np.broadcast_to(device < least, (self.users,)).sum())
            raise PlanningError(
                f"edge_budget_steps={self.edge_budget_steps} is too few for the {only_edge} users whose device cannot "
                f"run least_steps; give at least {self.least_edge_steps}"
            )

    @property
    def least_edge_steps(self) -> int:
        """Edge steps that any choice needs: those of the users whose device cannot run `least_steps`."""
        least, device = np.asarray(self.least_steps), np.asarray(self.device_most_steps)
        return int(np.broadcast_to(np.where(device < least, least, 0), (self.users,)).sum())

    def column(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        """The field as an array of the users in `rows`, or of one number that holds for all."""
        values = np.asarray(getattr(self, name))
        return values[rows] if values.ndim else values

    def slope(self, side: str, rows: slice = slice(None)) -> Floats:
        """What one more step costs in time and energy on `side` ('device' or 'edge'): (rows,) or one number."""
        step_s, power, hz = (self.column(f"{side}_{name}", rows) for name in ("step_s", "power", "hz"))
        return self.cost_weight * step_s * (self.time_weight + self.energy_weight * power * hz**3)

    def costs(self, side: str, rows: slice = slice(None)) -> Floats:
        """R of `side` by steps and user, (most + 1, rows); inf where the steps are too few or too many."""
        most = int(np.max(np.asarray(getattr(self, f"{side}_most_steps"))))
        steps = np.arange(most + 1, dtype=float)[:, None]
        found = np.exp(-steps * self.error_decay[rows])
        found *= self.cost_weight * self.error_weight
        gain = np.exp(-steps * self.utility_growth[rows])
        gain *= self.utility_weight
        found += gain
        found += self.slope(side, rows) * steps - self.utility_weight
        allowed_most = self.column(f"{side}_most_steps", rows)
        least = self.column("least_steps", rows)
        if allowed_most.ndim or least.ndim:
            found[(steps > allowed_most) | (steps < least)] = np.inf
        else:
            found[: int(least)] = np.inf
        return found

    def objective(self, at_edge: NDArray[np.bool_], steps: Ints) -> float:
        """`Σ_n R_n,a(s)` of a choice (OQC Eq. 8)."""
        slope = np.where(at_edge, self.slope("edge"), self.slope("device"))
        error = self.cost_weight * self.error_weight * np.exp(-self.error_decay * steps)
        lost = self.utility_weight * np.exp(-self.utility_growth * steps)
        return float(np.sum(slope * steps + error + lost - self.utility_weight))


@dataclass(frozen=True, eq=False)
class OffloadSolution:
    """Who goes to the edge, (N,) bool, with how many steps, (N,), at which cost.

    `lower_bound` is what no choice can go below (None: the method proves nothing); `dual_bound` is the weaker one
    of the Lagrangian dual alone, and `multiplier` its price of one edge step, where the method has them. Bounds
    are float64 sums of N terms: good to about 1e-12 of their size.
    """

    problem: OffloadProblem
    at_edge: NDArray[np.bool_]
    steps: Ints
    objective: float
    lower_bound: float | None
    method: str
    multiplier: float | None = None
    dual_bound: float | None = None

    @property
    def gap(self) -> float | None:
        """Certified relative gap: `(objective - lower_bound) / |objective|`; 0 is proven optimal."""
        if self.lower_bound is None:
            return None
        return max(0.0, self.objective - self.lower_bound) / max(abs(self.objective), 1e-300)

    @property
    def edge_steps(self) -> int:
        """Steps that the edge runs in all."""
        return int(self.steps[self.at_edge].sum())

    def parts(self) -> dict[str, Floats]:
        """Delay (s), energy (J), average error and utility of every user, each (N,) (OQC Eqs. 3-7)."""
        problem = self.problem
        step_s = np.where(self.at_edge, problem.edge_step_s, problem.device_step_s)
        device_w, edge_w = (problem.column(f"{s}_power") * problem.column(f"{s}_hz") ** 3 for s in ("device", "edge"))
        delay_s = self.steps * step_s
        return {
            "delay_s": delay_s,
            "energy_j": delay_s * np.where(self.at_edge, edge_w, device_w),
            "error": np.exp(-problem.error_decay * self.steps),
            "utility": 1 - np.exp(-problem.utility_growth * self.steps),
        }

    def plans(self, edge: str = "edge") -> list[Plan]:
        """One Plan a user: all steps at the edge, or all on the device."""
        from fedkd.planning.plan import Plan

        parts = self.parts()
        return [
            Plan(
                edge=edge,
                num_inference_steps=int(steps),
                device_steps=0 if there else int(steps),
                order="device_first",
                reasons=(f"{'offloaded' if there else 'kept on the device'} by {self.method}",),
                delay_s=float(parts["delay_s"][n]),
                energy_j=float(parts["energy_j"][n]),
                quality=float(parts["utility"][n]),
            )
            for n, (there, steps) in enumerate(zip(self.at_edge, self.steps, strict=True))
        ]


def oqc_problem(users: int = 30, edge_budget_steps: int | None = None, seed: int = 0, **changes: Any) -> OffloadProblem:
    """OQC's setting (section IV-A) with what it leaves open: C1, then C2, uniform in 0.1..0.3 from `seed`.

    `edge_budget_steps` None takes 200 for 30 users, and in proportion for others.
    """
    if users < 1:
        raise PlanningError(f"users={users} is too few; give at least 1")
    draws = np.random.default_rng(seed)
    error_decay, utility_growth = draws.uniform(0.1, 0.3, users), draws.uniform(0.1, 0.3, users)
    budget = 200 * users // 30 if edge_budget_steps is None else edge_budget_steps
    return OffloadProblem(error_decay, utility_growth, budget, **changes)


FIELDS = tuple(each.name for each in fields(OffloadProblem) if each.init)


def _array(name: str, values: Any, kind: type) -> NDArray[Any]:
    """The values as float64 or int64; PlanningError where they are not numbers or not whole."""
    try:
        found = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise PlanningError(f"{name}={values!r} is not a number; give numbers") from None
    if kind is float:
        return found
    whole = np.isfinite(found) & (found == np.floor(found)) & (np.abs(found) < 2**53)
    if not whole.all():
        raise PlanningError(f"{name}={found[~whole].flat[0]:g} is not a whole number; give whole steps")
    return found.astype(np.int64)
