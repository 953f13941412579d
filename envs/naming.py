"""Things by name: modules, and what they hold, as 'module:name'."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

from treewright.envs.errors import TreewrightError

__all__ = ["file_of", "import_named", "load_named", "modules_here", "own_place", "place_of", "shadowed"]


def import_named(name: str) -> ModuleType:
    """The module of that name: an installed one, else one that lies in the working directory.

    A console script does not look for modules where it was started, but that is where people have theirs. The working
    directory is last in the search path and only while the module is imported, so it hides no installed package.
    Raises ImportError as importlib does, and with the place for a module whose own code raises.
    """
    with modules_here():
        try:
            return importlib.import_module(name)
        except ImportError:
            raise
        except (Exception, SystemExit) as error:
            raise ImportError(f"importing it raised {type(error).__name__}: {error}{place_of(error)}") from error


@contextmanager
def modules_here() -> Iterator[None]:
    """Modules in the working directory can be imported, too, last of all."""
    here = os.getcwd()
    if here in sys.path:
        yield
        return
    sys.path.append(here)
    try:
        importlib.invalidate_caches()
        yield
    finally:
        with suppress(ValueError):  # a module may have tidied up itself
            sys.path.remove(here)


def load_named(spec: str, what: str, known: str = "") -> Any:
    """The object that 'module:name' names.

    Raises TreewrightError saying which half is wrong, what is near, and, for a module that breaks while it is
    imported, where. `known` is told where the form is wrong: what else could have been meant.
    """
    module_name, colon, attribute = spec.partition(":")
    if not colon or not module_name or not attribute:
        raise TreewrightError(f"{what} = {spec!r} is not of the form 'module:name'{known}")
    try:
        module = import_named(module_name)
    except ImportError as error:
        raise TreewrightError(
            f"{what} = {spec!r}: cannot import {module_name!r}: {error}; mend it, or type in its folder"
        ) from error
    if not hasattr(module, attribute):
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        raise TreewrightError(
            f"{what} = {spec!r}: module {module_name!r}{file_of(module)} has no {attribute!r}"
            + (shadowed(module) or (f"; did you mean {near[0]!r}?" if near else ""))
        )
    return getattr(module, attribute)


def file_of(module: ModuleType) -> str:
    """' (FILE)' that a module was imported from; '' for one that has none."""
    found = getattr(module, "__file__", None)
    return f" ({found})" if found else ""


def shadowed(module: ModuleType) -> str:
    """What to do where a module of that name lies in the working directory and another one was imported; else ''."""
    name = Path(*module.__name__.split("."))
    found = Path(getattr(module, "__file__", None) or "")
    for own in (Path.cwd() / name.with_suffix(".py"), Path.cwd() / name / "__init__.py"):
        if own.is_file() and own.resolve() != found.resolve():
            own = own.relative_to(Path.cwd())
            return f"; {own} here was not imported, since an installed module has its name: rename it"
    return ""


def place_of(error: BaseException) -> str:
    """' (FILE, line N)' of the code that raised: the innermost frame outside installed packages and this one.

    Empty where the exception passed through no frame at all, or tells its place itself as a syntax error does.
    """
    frames = list(walk_tb(error.__traceback__))
    if isinstance(error, SyntaxError) or not frames:
        return ""
    own = [(frame, line) for frame, line in frames if not frame.f_code.co_filename.startswith(_INSTALLED)]
    frame, line = (own or frames)[-1]
    return f" ({os.path.basename(frame.f_code.co_filename)}, line {line})"


def own_place(error: BaseException) -> str:
    """`place_of`, but empty where only installed packages and this one took part."""
    files = (frame.f_code.co_filename for frame, _ in walk_tb(error.__traceback__))
    return place_of(error) if any(not file.startswith(_INSTALLED) for file in files) else ""


_FLOORS = Path(__file__).parents[1]
_INSTALLED = (
    *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib")),
    *(str(place) for place in (_FLOORS, *(floor.resolve() for floor in _FLOORS.iterdir()))),
    "<frozen",
)
