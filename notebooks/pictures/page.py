"""Photographs page.png, the chart of the quickstart's page, in Debian's Chromium.

pip install -e '.[browser]'
python -m glora_jax.main --config configs/quickstart.py
python notebooks/pictures/page.py [WORKDIR]
"""

import pathlib
import sys

from playwright.sync_api import sync_playwright

WIDTH, MARGIN = 1000, 16  # pixels: of the window, around the chart


def main(workdir: str = 'runs/quickstart') -> None:
  """Writes the picture beside this file."""
  page = pathlib.Path(workdir, 'report.html').resolve()
  with sync_playwright() as started:
    browser = started.chromium.launch(executable_path='/usr/bin/chromium', args=['--no-sandbox'])
    tab = browser.new_page(viewport={'width': WIDTH, 'height': WIDTH}, device_scale_factor=2)
    tab.goto(page.as_uri())
    chart = tab.locator('#accuracy figure').first
    chart.evaluate(f"chart => chart.style.padding = '{MARGIN}px'")
    chart.screenshot(path=pathlib.Path(__file__).with_suffix('.png'))
    browser.close()


if __name__ == '__main__':
  main(*sys.argv[1:])
