"""The documents build into a site with warnings as errors: links, anchors, and what the reference names."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "-f", str(config), "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings", reason="needs the extra 'docs': pip install 'treewright[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site of two pages with the settings of the whole one, which builds."""
    pytest.importorskip("mkdocstrings", reason="needs the extra 'docs': pip install 'treewright[docs]'")
    folder = tmp_path_factory.mktemp("small")
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text("# Start\n\n[a page](other.md#there)\n")
    (folder / "docs" / "other.md").write_text("# Other\n\n## There\n")
    shutil.copy(ROOT / "docs" / "site.css", folder / "docs")
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[0]
    text = text.replace("[scripts/", f"[{ROOT}/scripts/").replace("[pkg]", f"[{ROOT}/pkg]")
    (folder / "mkdocs.yml").write_text(text.replace(f"hooks: [{ROOT}/scripts/docs_pages.py]\n", ""))
    done = build(folder / "site", folder / "mkdocs.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    "broken", ["[a page](nowhere.md)", "[an anchor](other.md#nowhere)", "::: treewright.envs.nowhere"]
)
def test_a_broken_link_fails_the_build(broken: str, small: Path, tmp_path: Path) -> None:
    shutil.copytree(small, tmp_path, dirs_exist_ok=True)
    page = tmp_path / "docs" / "index.md"
    page.write_text(f"{page.read_text()}\n\n{broken}\n")
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode != 0 and "nowhere" in done.stderr


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    pages |= {"index", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG", "SECURITY"}
    assert pages <= {path.stem for path in site.glob("*.html")}
    assert (site / "examples" / "own_rule.py").is_file()


def test_the_reference_shows_every_member_that_it_asks_for(site: Path) -> None:
    shown = (site / "reference.html").read_text()
    page = (ROOT / "docs" / "reference.md").read_text()
    for module, members in re.findall(r"^::: (\S+)\n +options: \{members: \[(.*?)\]\}", page, re.MULTILINE):
        for member in members.split(", "):
            assert f'id="{module}.{member}"' in shown, f"{module}.{member}"


def test_columns_of_docstrings_stay_columns(site: Path) -> None:
    assert re.search(r"restore_ways +the ways back", re.sub(r"<[^>]+>", "", (site / "reference.html").read_text()))
