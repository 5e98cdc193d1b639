"""What the site has from outside of docs/: the README as its first page, pictures, links to files.

MkDocs calls these functions while it builds the site (https://www.mkdocs.org/user-guide/plugins).
Links and pictures are written as they work in the repository.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
# Files of the repository that are pages or pictures of the site, and their places there.
FROM_OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "results/errors.png": "results/errors.png",
    "results/tradeoff.png": "results/tradeoff.png",
}
LINK = re.compile(r"\]\((?!\w+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files from outside."""
    for path, place in FROM_OUTSIDE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links of a page to where their files are: in the site, or in the repository."""
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
