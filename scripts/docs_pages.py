"""A hook of mkdocs: pages at the top of the repository and the examples become part of the site; links follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
TOP = {"README.md": "index.md"} | {
    f"{n}.md": f"{n}.md" for n in ("ARCHITECTURE", "CONTRIBUTING", "CHANGELOG", "SECURITY")
}
LINKS = {"](docs/": "](", "](../docs/": "](../", "](../README.md": "](index.md", "](examples)": "](examples/README.md)"}


def on_files(files: Files, config: Any) -> Files:
    for source, page in TOP.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text("utf-8")))
    for path in sorted((ROOT / "examples").glob("**/*.*")):
        if path.is_file() and path.suffix != ".pyc":
            inside = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, inside, content=path.read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    for old, new in LINKS.items():
        markdown = markdown.replace(old, new)
    inside = page.file.src_uri.startswith("examples/")
    return markdown if inside else markdown.replace("](../", "](")
