"""Settings of the documentation; build it with `make docs`."""

from html import escape

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

import skclip_icm

logger = logging.getLogger(__name__)

project = "skclip-icm"
author = "the skclip-icm developers"
copyright = f"2026, {author}"
version = release = skclip_icm.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "examples", "sg_execution_times.rst"]
templates_path = ["_templates"]
default_role = "literal"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
# Pages included from the repository's root link to files that are no pages here.
suppress_warnings = ["myst.xref_missing"]

numpydoc_show_class_members = False  # the template of classes lists them
autosummary_generate = True

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "abort_on_example_error": True,
    "download_all_examples": False,
    # What drawing returns says nothing to a reader.
    "ignore_repr_types": r"matplotlib\.|skclip_icm\.plotting",
    "show_memory": False,
}

html_theme = "pydata_sphinx_theme"
html_title = "skclip-icm"
html_show_sourcelink = False
html_math_renderer = "mathml"
# Pages without pages below them have nothing to show at the left.
html_sidebars = {page: [] for page in ("index", "get_started", "about")}
html_theme_options = {
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
}


def setup(app):
    app.connect("autodoc-skip-member", skip_routing_methods)
    app.add_html_math_renderer("mathml", (inline_math, None), (display_math, None))


def skip_routing_methods(app, what, name, value, skip, options):
    """Leave out `set_fit_request` and its like, which scikit-learn documents."""
    return True if name.startswith("set_") and name.endswith("_request") else None


# Browsers show MathML by themselves, so the pages need neither a script nor a network.
def inline_math(translator, node):
    translator.body.append(mathml(node))
    raise nodes.SkipNode


def display_math(translator, node):
    translator.body.append(f"<p>{mathml(node, as_block=True)}</p>")
    raise nodes.SkipNode


def mathml(node, as_block=False):
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logger.warning("%s In: %s", error, node.astext(), location=node)
        return f"<code>{escape(node.astext())}</code>"
