"""A stand-in for the command lines of docker and podman: containers are folders, every line is recorded.

    place = stand_in(tmp_path, monkeypatch)      # first on PATH from now on; recorded(place) are the lines

What it cannot show is what a real engine does with these lines; it knows the words that we use, and fails on others.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

SCRIPT = r"""#!{python} -IS
import os, sys  # what else is needed is imported where it is: this is started often

PLACE = {place!r}
words = sys.argv[1:]
with open(PLACE + "/lines", "a") as file:
    import json
    file.write(json.dumps(words) + "\n")


def root(name):
    found = PLACE + "/containers/" + name
    if not os.path.isdir(found):
        sys.exit("Error: No such container: " + name)
    return found


def image(name):
    return PLACE + "/images/" + name.replace("/", "_").replace(":", "_")


def inside(here, text):
    import re
    return re.sub(r"(?<![\w./])/(?=(?:logs|tests|app|solution)\b)", here + "/", text)


def copy(source, target):
    import shutil
    shutil.copytree(source, target)


def remove(folder):
    import shutil
    shutil.rmtree(folder)


def options(words, with_value, alone=()):
    told = {{}}
    while words and words[0].startswith("-"):
        if words[0] in alone:
            words = words[1:]
            continue
        if words[0] not in with_value:
            sys.exit("unknown flag: " + words[0])
        told.setdefault(words[0], []).append(words[1])
        words = words[2:]
    return told, words


verb, rest = words[0], words[1:]
if verb == "image" and rest[0] == "inspect":
    sys.exit(0 if os.path.isdir(image(rest[1])) else 1)
elif verb in ("build", "pull"):
    told, rest = options(rest, ("-t",))
    made = image(told["-t"][0] if told else rest[0])
    os.makedirs(made + "/app")
    with open(made + "/app/number", "w") as file:
        file.write("3\n")
elif verb == "run":
    told, rest = options(rest, ("--name", "--label", "--network", "--cpus", "--memory"), ("-d",))
    copy(image(rest[0]), PLACE + "/containers/" + told["--name"][0])
elif verb == "exec":
    told, rest = options(rest, ("-u", "-w", "-e"))
    here = root(rest[0])
    os.chdir(here + told.get("-w", ["/app"])[0])
    line = [inside(here, word) for word in rest[1:]]
    code = os.spawnvp(os.P_WAIT, line[0], line)
    sys.exit(code if code >= 0 else 128 - code)
elif verb == "cp":
    name, _, target = rest[1].partition(":")
    here, source = root(name), rest[0].removesuffix("/.")
    for name in os.listdir(source):
        with open(source + "/" + name) as file, open(here + target + "/" + name, "w") as goal:
            goal.write(inside(here, file.read()))
        os.chmod(here + target + "/" + name, os.stat(source + "/" + name).st_mode)
elif verb == "commit":
    copy(root(rest[0]), image(rest[1]))
elif verb == "rm":
    remove(root(rest[1]))
elif verb == "rmi":
    remove(image(rest[1]))
elif verb == "restart":
    root(rest[2])
elif verb == "ps":
    print("\n".join(os.listdir(PLACE + "/containers")))
elif verb != "info":
    sys.exit("unknown command: " + verb)
"""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "docker") -> Path:
    """Makes one in `folder`, in front of PATH; returns the folder of its state."""
    place = folder / "stand-in"
    for part in ("bin", "containers", "images"):
        (place / part).mkdir(parents=True)
    program = place / "bin" / name
    program.write_text(SCRIPT.format(python=sys.executable, place=str(place)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    return place


def recorded(place: Path) -> list[list[str]]:
    """Every line so far, without the program's name."""
    return [json.loads(line) for line in (place / "lines").read_text().splitlines()]
