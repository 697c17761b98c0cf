"""How many of the linear layers that a reader counts in other people's models are found.

  python -m benchmarks.coverage [--quick]

The models are those of the tests: tests/method/model_zoo.py (linen) and function_zoo.py, which are
functions, tests/nnx/nnx_zoo.py, and tests/peers/code_bases.py, which runs the real code of
google-tunix, Equinox and Haiku where they are installed (pip install -e '.[peers]', then
pip install --no-deps google-tunix). Heads are not counted. What no row can stand for is not missed:
`Adapted.coverage` lists it. `--quick` leaves out what needs other packages. The last line is JSON.
"""

import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import glora_jax
from benchmarks.machinery.measuring import make_parser, print_result, print_table

TESTS = pathlib.Path(__file__).parents[1] / 'tests'


class Row(NamedTuple):
  """A model.

  Attributes:
    source: the code base whose pattern it is.
    model: its name.
    api: how it is adapted.
    found: rows of the genome; None where the code base is not installed.
    counted: rows that were counted by hand.
    missed: names of kernels that were counted and not found, or an error.
  """

  source: str
  model: str
  api: str
  found: int | None
  counted: int
  missed: tuple[str, ...] = ()


def linen_rows() -> Iterator[Row]:
  """The models of linen modules, each as one row."""
  import model_zoo

  for name, make in model_zoo.EXAMPLES.items():
    example = make()
    adapted = glora_jax.adapt(example.model, *example.inputs, **example.kwargs)
    names = {layer.name for layer in adapted.spec}
    missed = tuple(row for row in example.rows if row not in names)
    yield Row('linen', name, 'adapt', len(adapted.spec), len(example.rows), missed)


def counted_rows(name: str, example: Any) -> Iterator[Row]:
  """A model whose kernels were counted by hand, by every way of adapting it."""
  from hand_count import NnxExample, found

  inputs, options = example.inputs, example.options

  def live() -> Any:
    model = glora_jax.nnx.attach(example.make(), *inputs, **options, **example.kwargs)
    return glora_jax.nnx.as_adapted(model)[0]

  if isinstance(example, NnxExample):
    nnx_adapt = glora_jax.nnx.adapt
    ways = {
      'nnx.adapt': lambda: nnx_adapt(example.make(), *inputs, **options, **example.kwargs),
      'nnx.attach': live,
    }
  else:
    function = functools.partial(glora_jax.adapt_function, example.apply, example.params)
    ways = {'adapt_function': lambda: function(*inputs, **options)}
    if example.linen:
      ways['adapt'] = lambda: glora_jax.adapt(example.linen, *inputs, **options)
  source = example.source or 'plain'
  for api, adapt in ways.items():
    try:
      adapted = adapt()
    except ValueError as error:
      yield Row(source, name, api, 0, example.rows, (str(error),))
      continue
    missed = tuple(sorted(example.kernels.keys() - found(adapted)))
    yield Row(source, name, api, len(adapted.spec), example.rows, missed)


def all_rows(quick: bool) -> Iterator[Row]:
  """The patterns that the tests write themselves, and real models of other code bases."""
  import function_zoo
  import nnx_zoo

  for zoo in (nnx_zoo, function_zoo):
    for name, make in zoo.EXAMPLES.items():
      yield from counted_rows(name, make())
  if quick:
    return
  from tests.peers import code_bases

  for name, make in code_bases.EXAMPLES.items():
    try:
      example = make()
    except ImportError as error:
      yield Row('', name, str(error), None, 0)
    else:
      yield from counted_rows(name, example)


def main() -> None:
  """Counts and prints."""
  quick = make_parser(__doc__, 'only what needs no other package').parse_args().quick
  sys.path[:0] = [str(TESTS / folder) for folder in ('', 'method', 'nnx')]
  rows = [*linen_rows(), *all_rows(quick)]
  print_table(
    ('model', 'code base', 'by', 'rows', 'missed'),
    [
      (
        row.model,
        row.source,
        row.api,
        '-' if row.found is None else f'{row.found}/{row.counted}',
        ', '.join(row.missed) or '-',
      )
      for row in rows
    ],
  )
  ran = [row for row in rows if row.found is not None]
  values = {
    'quick': quick,
    'models': len({row.model for row in ran}),
    'found': sum(row.found or 0 for row in ran),
    'counted': sum(row.counted for row in ran),
    'incomplete': [f'{row.model} by {row.api}' for row in ran if row.found != row.counted],
    'not_installed': [row.model for row in rows if row.found is None],
  }
  print_result('coverage', values)


if __name__ == '__main__':
  main()
