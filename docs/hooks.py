"""MkDocs hooks: adds files from outside of docs/ to the site, and rewrites links.

MkDocs calls these functions while it builds the site (https://www.mkdocs.org/user-guide/plugins).
In the pages, links and images are written as they work in the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files outside of docs/ that are pages or images of the site, with their paths in it.
FROM_OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "results/errors.png": "results/errors.png",
    "results/tradeoff.png": "results/tradeoff.png",
}
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files from outside of docs/."""
    for path, place in FROM_OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites the links of a page to the site, or to the repository for other files."""
    folder = "" if page.file.src_uri in {*FROM_OUTSIDE.values()} else "docs"

    def pointed(link: re.Match) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[1]))
        if path in FROM_OUTSIDE:
            return f"]({FROM_OUTSIDE[path]}"
        if path.startswith("docs/") or not (ROOT / path).exists():
            return f"]({path.removeprefix('docs/')}"
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"]({config.extra['repository']}/{kind}/main/{path}"

    return LINK.sub(pointed, markdown)
