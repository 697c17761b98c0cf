"""A parser of the pages of runs, grids and suites."""

import html.parser

VOID = {'meta', 'link', 'img', 'br'}


class Element:
  """An element of a page: its name, its attributes, the elements in it, all text in it."""

  def __init__(self, name, attributes):
    self.name, self.attributes, self.inner, self.text = name, attributes, [], ''

  def all(self, *names):
    """Every element in it with one of the names, from above."""
    found = [self] if self.name in names else []
    return found + [element for inner in self.inner for element in inner.all(*names)]

  def words(self):
    """Its text with single spaces."""
    return ' '.join(self.text.split())

  def rows(self):
    """The words of the cells of every row of every table in it."""
    return [[cell.words() for cell in row.all('th', 'td')] for row in self.all('tr')]


class Parser(html.parser.HTMLParser):
  """Makes `Element`s of HTML, and refuses what is not closed in order."""

  def __init__(self):
    super().__init__()
    self.open = [Element('', {})]

  def handle_starttag(self, tag, attrs):
    element = Element(tag, dict(attrs))
    self.open[-1].inner.append(element)
    if tag not in VOID:
      self.open.append(element)

  def handle_startendtag(self, tag, attrs):
    self.open[-1].inner.append(Element(tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop().name == tag

  def handle_data(self, data):
    for element in self.open:
      element.text += data


def parse(text):
  """The elements of a page."""
  parser = Parser()
  parser.feed(text)
  [root] = parser.open
  return root


def read(workdir):
  """The elements of the page in a workdir."""
  return parse((workdir / 'report.html').read_text())
