"""Sphinx settings. The pages that come from the program: see generate.py; the pictures: see pictures.py."""

from __future__ import annotations

from kernelbridge import __version__
from kernelbridge.errors import DOCUMENTATION

project = "kernelbridge"
author = "The kernelbridge developers"
copyright = author
version = release = __version__

extensions = ["myst_parser"]
myst_enable_extensions = ["colon_fence", "deflist"]
# Links such as limits.md#output need an anchor at each heading of these levels.
myst_heading_anchors = 3
exclude_patterns = ["**/__pycache__"]
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_title = "kernelbridge"
html_baseurl = DOCUMENTATION
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"], "show_toc_level": 2}
# These two have no pages beside them.
html_sidebars: dict[str, list[str]] = {"index": [], "getting-started": []}
html_copy_source = False
