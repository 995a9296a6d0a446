"""The manual: `make docs` builds it, without network and with every warning an error."""

from __future__ import annotations

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from generated import PAGES

from cnnfilterdb import __version__

project = "cnnfilterdb"
author = "the authors of cnnfilterdb"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

html_theme = "furo"
html_title = "cnnfilterdb"
html_static_path = ["_static"]
html_css_files = ["manual.css"]
html_copy_source = False
html_show_sourcelink = False

# SQL with macros of DuckDB and tables are not what Pygments expects.
suppress_warnings = ["misc.highlighting_failure"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes of a class are not indexed twice


def _generate(app: object, name: str, source: list[str]) -> None:
    """Replace each line ``% generated: NAME`` of a page by what is generated under that name."""
    for marker, page in PAGES.items():
        line = f"% generated: {marker}\n"
        if line in source[0]:
            source[0] = source[0].replace(line, page())


def _bars(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep absolute values such as |w|, which reStructuredText takes for references."""
    for number, line in enumerate(lines):
        if "|" in line and not line.lstrip().startswith((">>>", "...")):
            lines[number] = re.sub(r"(``.*?``)|\|", lambda match: match[1] or r"\|", line)


#: What readers without a mouse need: headings have a level, and what scrolls can be reached by the keyboard.
_REACHABLE = {
    'role="heading">': 'role="heading" aria-level="2">',
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper ': '<div tabindex="0" class="table-wrapper ',
}


def _reachable(app: object, page: str, template: str, context: dict[str, object], doctree: object) -> None:
    """Change what the theme writes by :data:`_REACHABLE`."""
    for name in ("body", "furo_navigation_tree"):
        if isinstance(text := context.get(name), str):
            for given, wanted in _REACHABLE.items():
                text = text.replace(given, wanted)
            context[name] = text


def setup(app: object) -> None:
    """Connect what changes pages and docstrings before they are parsed."""
    app.connect("autodoc-process-docstring", _bars)  # type: ignore[attr-defined]
    app.connect("source-read", _generate)  # type: ignore[attr-defined]
    app.connect("html-page-context", _reachable, priority=900)  # type: ignore[attr-defined]
