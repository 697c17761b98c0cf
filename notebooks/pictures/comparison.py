"""Draws comparison.png from a table of docs/results.md: `python notebooks/pictures/comparison.py`.

The table is the one below the command with `COMMAND`.
"""

import pathlib

from matplotlib.figure import Figure

from glora_jax.vision.reports.page import PALETTES

HERE = pathlib.Path(__file__)
RESULTS = HERE.parents[2] / 'docs' / 'results.md'
COMMAND = 'configs/compare.py --config.suite.seeds=3`'
LIGHT = PALETTES['light']
STYLES = {
  'gradient': ('*', LIGHT['teal'], 'chosen from one gradient'),
  'searched': ('D', LIGHT['red'], 'searched'),
  'fixed': ('o', LIGHT['purple'], 'fixed method'),
}
SIZE = 10.5  # of text


def read_rows(text: str) -> list[tuple[str, str, float, float]]:
  """Name, parameters, mean and deviation of the test accuracy of each structure."""
  lines = text.split(COMMAND)[1].splitlines()
  first = next(number for number, line in enumerate(lines) if line.startswith('|'))
  rows = []
  for line in lines[first + 2 :]:  # below the header and its rule
    if not line.startswith('|'):
      break
    name, params, _, test = (cell.strip() for cell in line.split('|')[1:5])
    mean, deviation = map(float, test.split('±'))
    rows.append((name, params, mean, deviation))
  return rows


def main() -> None:
  """Draws a line for each structure, in the table's order."""
  rows = read_rows(RESULTS.read_text())
  figure = Figure(figsize=(8, 4.6), layout='constrained')
  axis = figure.subplots()
  right = {'transform': axis.get_yaxis_transform(), 'va': 'center', 'fontsize': SIZE}
  for place, (name, params, mean, deviation) in enumerate(rows):
    marker, color, _ = STYLES.get(name.split(',')[0], STYLES['fixed'])
    axis.plot((mean - deviation, mean + deviation), (place, place), color=color, linewidth=2)
    axis.plot(mean, place, marker, color=color, markersize=10 if marker == '*' else 6)
    axis.text(-0.02, place, params, ha='right', color=LIGHT['dim'], **right)
    axis.text(-0.19, place, name, ha='right', color=LIGHT['ink'], **right)
    axis.text(1.02, place, f'{mean:.1f}', color=LIGHT['ink'], **right)
  axis.text(-0.02, -1, 'parameters', ha='right', color=LIGHT['dim'], **right)
  axis.set(ylim=(len(rows) - 0.5, -0.7), yticks=[])
  axis.tick_params(labelsize=SIZE)
  axis.grid(axis='x', color=LIGHT['rule'])
  axis.spines[['top', 'right', 'left']].set_visible(False)
  handles = [
    axis.plot([], [], marker, color=color, label=label)[0]
    for marker, color, label in STYLES.values()
  ]
  figure.legend(handles=handles, loc='outside upper center', ncols=3, fontsize=SIZE, frameon=False)
  figure.supxlabel(
    'test accuracy in %, mean and standard deviation of three seeds',
    fontsize=SIZE,
    color=LIGHT['ink'],
  )
  figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
  figure.savefig(HERE.with_suffix('.png'), dpi=175)


if __name__ == '__main__':
  main()
