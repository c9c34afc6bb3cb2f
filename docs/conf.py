"""How the site is made: `python -m sphinx -W docs site`, with the extra `docs` installed."""

from pygments.lexers.special import TextLexer
from sphinx.highlighting import lexers

from nunet_cli import __version__

project = "nunet"
author = "the nunet contributors"
project_copyright = "the nunet contributors, Apache-2.0"
release = version = __version__
extensions = ["myst_parser"]
# diagrams of states: drawn by who reads the source on a forge; their text is as good here, without a script of others
lexers["mermaid"] = TextLexer()
source_suffix = {".md": "markdown"}
exclude_patterns = ["site", "screens/*.txt"]
myst_heading_anchors = 3
nitpicky = True
html_theme = "furo"
html_title = f"nunet {release}"
html_static_path: list[str] = []
html_extra_path = ["job-specification.schema.json", "output.schema.json", "openapi.json", "grafana.json"]
html_show_sphinx = False
html_copy_source = False
# nothing from outside hosts: the site works in a lab without internet
html_theme_options = {"source_repository": "", "top_of_page_buttons": []}
