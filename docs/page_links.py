"""Links that lead somewhere on a repository's page and in the built documentation alike.

Pages name files of the repository, by paths from where they lie. What Sphinx needs under docs/ is
brought there by `conf.py`, and links to it are made links to where it then is.
"""

import os
import re

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
TARGET = re.compile(r'(?<=\]\()[^)#\s]+')
COPIED = 'notebooks/'
PAGE_OF = {
  'glora_jax/vision/runs/settings.py': 'reference/config.md',
}


def built(text: str, docname: str) -> str:
  """The text of a page with links to copies and pages in place of what they are made from.

  A copy's own links start where its original lies.
  """
  is_copy = docname.startswith(COPIED)
  folder = os.path.dirname(os.path.join(HERE, docname))
  start = os.path.dirname(os.path.join(ROOT if is_copy else HERE, docname))

  def built_target(found):
    path = os.path.relpath(os.path.join(start, found[0]), ROOT)
    if is_copy:
      page = path.removeprefix('docs/') if path.startswith('docs/') else None
    else:
      page = path if path.startswith(COPIED) else PAGE_OF.get(path)
    if page:
      return os.path.relpath(os.path.join(HERE, page), folder)
    is_page = path.startswith('docs/') or not path.endswith('.md')
    return found[0] if is_page else f'path:{found[0]}'  # a file, to download

  return TARGET.sub(built_target, text)
