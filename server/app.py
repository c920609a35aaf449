"""The Flower ServerApp: loads the recipe and runs the federation."""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds of the recipe that run-config names; state and progress stay in the run's folder."""
    import shlex

    import torch

    from fedkd.distillation.jobs.tracking import Tracker, check_tracker
    from fedkd.recipe import check_registry_url, load_recipe, registry_dir, run_dir, save_recipe
    from server.exchange import first_line
    from server.rounds import Federation
    from server.run_report import write_run_report
    from server.tracking import RoundTracker

    config = context.run_config
    recipe = load_recipe(str(config["recipe"]), shlex.split(str(config.get("overrides", ""))))
    out = str(config.get("out-dir", ""))
    run = Path(out).expanduser().resolve() if out else run_dir(recipe)
    run.mkdir(parents=True, exist_ok=True)
    if not (run / "recipe.yaml").is_file():
        save_recipe(recipe, run / "recipe.yaml")
    registry = registry_dir(recipe) if recipe.run.registry else run / "registry"
    torch.set_num_threads(recipe.run.threads)
    (run / "error.json").unlink(missing_ok=True)
    url = check_registry_url(str(config.get("registry-url", "")), "run-config registry-url")
    federation = Federation(grid, recipe, run, registry, registry_url=url)
    try:
        check_tracker(recipe.run.tracker)
        with Tracker(recipe, run) as tracker:
            if recipe.run.tracker:
                federation.after_round = RoundTracker(federation.state, tracker).sent
            federation.go()
    except BaseException as error:
        defect = not isinstance(error, (ValueError, OSError))
        facts = {"error": first_line(error), "type": type(error).__name__, "defect": defect}
        federation.state.write_bytes(run / "error.json", json.dumps(facts).encode())
        federation.state.event("failed", **facts)
        raise
    finally:
        write_run_report(run)
