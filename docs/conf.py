"""Sphinx settings. What comes from the program: see generate.py; pictures: see pictures.py and screenshots.py."""

from __future__ import annotations

from kernelbridge import __version__
from kernelbridge.errors import DOCUMENTATION

project = "kernelbridge"
author = "The kernelbridge developers"
copyright = author
version = release = __version__

extensions = ["myst_parser"]
# attrs_inline: {.only-light} behind a picture, which the theme shows or hides.
myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
# Links such as limits.md#output need an anchor at each heading of these levels.
myst_heading_anchors = 3
exclude_patterns = ["**/__pycache__"]
nitpicky = True

html_theme = "pydata_sphinx_theme"
html_title = "kernelbridge"
html_baseurl = DOCUMENTATION
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"], "show_toc_level": 2}
# These have no pages beside them.
html_sidebars: dict[str, list[str]] = {"index": [], "getting-started": [], "from-by-hand": []}
html_copy_source = False
