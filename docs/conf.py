"""Builds the documentation: `pip install -e '.[docs]' && python -m sphinx -W docs docs/_build`.

Pages with code are executed while they are built, from a cache where they have not changed; the
page of config fields is written from the declarations that check them.
"""

import importlib.metadata
import os
import shutil
import sys

sys.path.insert(0, os.path.dirname(__file__))

import config_page
import page_links

import glora_jax

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

project = 'glora_jax'
author = 'the glora_jax authors'
version = release = glora_jax.__version__
extensions = [
  'myst_nb',
  'sphinx.ext.autodoc',
  'sphinx.ext.napoleon',
  'sphinx.ext.viewcode',
]
exclude_patterns = ['_build', '.jupyter_cache', 'jupyter_execute']
default_role = 'code'
html_theme = 'sphinx_book_theme'
html_title = 'glora_jax'
html_static_path = ['_static']
html_css_files = ['commands.css']
# Without a search field: the header has one.
html_sidebars = {'**': ['navbar-logo.html', 'icon-links.html', 'sbt-sidebar-nav.html']}
html_theme_options = {'show_toc_level': 2, 'home_page_in_toc': True}
links = importlib.metadata.metadata('glora_jax').get_all('Project-URL') or ()
for name, address in (link.split(', ', 1) for link in links):  # of pyproject.toml
  if name == 'Repository':
    html_theme_options |= {'repository_url': address, 'use_repository_button': True}
suppress_warnings = ['mystnb.unknown_mime_type']
nb_render_markdown_format = 'myst'  # of outputs; CommonMark, the default, has no tables

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 3
nb_execution_mode = 'cache'
nb_execution_excludepatterns = ['notebooks/*']  # tests of `.ci/full` execute these
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_output_stderr = 'remove'

autodoc_mock_imports = ['torch', 'torchax']
autodoc_member_order = 'bysource'
autodoc_typehints = 'signature'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def setup(app):
  """Brings what lies elsewhere to where Sphinx looks for it."""
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  notebooks = os.path.join(HERE, 'notebooks')
  shutil.copytree(os.path.join(ROOT, 'notebooks'), notebooks, dirs_exist_ok=True)
  with open(os.path.join(HERE, 'reference', 'config.md'), 'w') as file:
    file.write(config_page.text())
  app.connect('source-read', _with_built_links)


def _with_built_links(app, docname, source):
  source[0] = page_links.built(source[0], docname)
