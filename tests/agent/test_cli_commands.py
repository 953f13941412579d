"""The table of commands says what the commands say of themselves, and imports none of them to list them."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest
import typer.main
from typer.testing import CliRunner

from treewright.agent.cli.commands import COMMANDS
from treewright.agent.cli.main import app


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_has_the_first_paragraph_of_each_command(name: str) -> None:
    command = typer.main.get_command(app).get_command(None, name)  # type: ignore[attr-defined]
    assert command.name == name
    assert (command.help or "").split("\n\n")[0].replace("\n", " ").strip() == COMMANDS[name][1]


@pytest.mark.parametrize("line", ["--help", "--version"])
def test_listing_commands_imports_no_search_and_no_numbers(line: str) -> None:
    code = (
        f"import sys; sys.argv = ['treewright', {line!r}]\n"
        "from treewright.agent.cli.main import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not {'numpy', 'sqlalchemy', 'treewright.search', 'torch'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_command_that_does_not_exist_is_refused_with_the_nearest_one() -> None:
    done = CliRunner().invoke(app, ["colect"])
    assert done.exit_code == 2 and "collect" in done.output


def test_transformers_is_imported_without_scikit_learn_and_others_still_find_it() -> None:
    code = (
        "import sys\n"
        "from treewright.agent.cli.lean import leave_out_sklearn\n"
        "leave_out_sklearn()\n"
        "from transformers import AutoModelForCausalLM\n"
        "AutoModelForCausalLM.from_pretrained\n"
        "assert 'transformers.generation.candidate_generator' in sys.modules and 'sklearn' not in sys.modules\n"
        "import importlib.util\n"
        "assert len(sys.meta_path) == len(set(map(id, sys.meta_path)))\n"
        "print(importlib.util.find_spec('sklearn') is not None)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(find_spec("sklearn") is not None)
