"""The `fedkd` command: its verbs, each in a file of its own."""

from __future__ import annotations

from typing import Annotated

import typer

from fedkd import __version__
from fedkd.cli.audit import audit
from fedkd.cli.bench import bench
from fedkd.cli.checkpoints import checkpoints
from fedkd.cli.distill import distill
from fedkd.cli.federate import federate
from fedkd.cli.generate import generate
from fedkd.cli.keys import keys
from fedkd.cli.plan import plan
from fedkd.cli.pretrain import pretrain
from fedkd.cli.publish import publish
from fedkd.cli.pull import pull
from fedkd.cli.recipes import recipes
from fedkd.cli.registry import registry
from fedkd.cli.report import report
from fedkd.cli.serve import serve
from fedkd.cli.sets import sets
from fedkd.cli.simulate import simulate
from fedkd.cli.watch import watch

HELP = """Federated distillation of Stable Diffusion, and split inference between device and edge.

[bold]The loop on this machine, about ten minutes on two cores:[/bold]

  fedkd simulate quickstart

[bold]Then:[/bold]

  fedkd recipes ls                   what can be run
  fedkd recipes show quickstart      everything a run is made of
  fedkd simulate quickstart run.seed=1 run.name=again
                                     change one thing
  fedkd federate --help              the same with nodes on other machines
  fedkd report quickstart            one page of a run, whatever it got to
  fedkd watch quickstart             look on while it runs, from another terminal
  fedkd distill --help               a few-step student from teachers of your own
  fedkd serve --help                 serve a checkpoint from an edge
  fedkd generate --help              draw a picture with that edge
  fedkd checkpoints ls               the published versions of a model
  fedkd publish --help               a version to a folder, a bucket or the Hugging Face Hub
  fedkd pull --help                  a version from there, only what is missing
  fedkd registry serve --help        a registry for edges on other machines
  fedkd sets serve --help            where an edge takes its users' synthetic sets
  fedkd keys new --help              keys to sign with, and to trust
  fedkd audit verify --help          whether a run's audit log is as it was written
  fedkd plan --help                  how many steps, where, at what cost
  fedkd bench federated              the student against FedAvg
"""

app = typer.Typer(
    help=HELP,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"fedkd {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before the verb."""


main.__doc__ = HELP
app.add_typer(recipes, name="recipes")
app.add_typer(checkpoints, name="checkpoints")
app.add_typer(registry, name="registry")
app.add_typer(sets, name="sets")
app.add_typer(keys, name="keys")
app.add_typer(plan, name="plan")
app.add_typer(audit, name="audit")
for verb in (simulate, federate, report, watch, distill, generate, serve, publish, pull, bench, pretrain):
    app.command(verb.__name__)(verb)

if __name__ == "__main__":
    app(prog_name="fedkd")
