"""Pages in a browser: no errors, nothing to scroll sideways, nothing that axe-core finds.

They need the extra `browser` and Debian's Chromium.
"""

import os

import pytest

CHROMIUM = '/usr/bin/chromium'
FLAGS = ('--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking')


@pytest.fixture(scope='module')
def browser():
  """Chromium, without a window."""
  playwright = pytest.importorskip('playwright.sync_api', reason='needs the extra `browser`')
  pytest.importorskip('axe_playwright_python', reason='needs the extra `browser`')
  if not os.path.exists(CHROMIUM):
    pytest.skip(f'there is no {CHROMIUM}')
  with playwright.sync_playwright() as started:
    running = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
    yield running
    running.close()


@pytest.mark.slow
@pytest.mark.parametrize('scheme, width', [('light', 1280), ('dark', 390)])
@pytest.mark.usefixtures('any_page')
def test_a_browser_finds_nothing_wrong_with_a_page(browser, tmp_path, scheme, width):
  from axe_playwright_python.sync_playwright import Axe

  written = (tmp_path / 'report.html').as_uri()
  viewport = {'width': width, 'height': 800}
  # The page forbids scripts, and axe-core is one.
  context = browser.new_context(color_scheme=scheme, viewport=viewport, bypass_csp=True)
  tab, told, asked = context.new_page(), [], []
  tab.on('console', lambda message: told.append(message.text))
  tab.on('pageerror', lambda error: told.append(str(error)))
  tab.on('request', lambda request: asked.append(request.url))
  tab.goto(written)
  assert told == []
  assert [address for address in asked if not address.startswith('data:')] == [written]
  assert tab.evaluate('document.documentElement.scrollWidth') <= width
  found = Axe().run(tab).response['violations']
  assert [(rule['id'], rule['nodes'][0]['target']) for rule in found] == []
  context.close()
