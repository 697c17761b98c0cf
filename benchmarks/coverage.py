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
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import glora_jax
from benchmarks.machinery.measuring import make_parser, print_result, print_table

TESTS = pathlib.Path(__file__).parents[1] / 'tests'


class Row(NamedTuple):
  """A model, the code base whose pattern it is, how it is adapted, and what was found.

  Attributes:
    found: rows of the genome; None where the code base is not installed.
    counted: rows that were counted by hand.
    missed: names of kernels that were counted and not found, or an error.
  """

  model: str
  source: str
  api: str
  found: int | None = None
  counted: int = 0
  missed: Iterable[str] = ()


def ways_of(example: Any) -> dict[str, Callable[[], Any]]:
  """Every way of adapting a model whose kernels were counted by hand."""
  from hand_count import NnxExample

  inputs, options, nnx = example.inputs, example.options, glora_jax.nnx
  if isinstance(example, NnxExample):
    options = {**options, **example.kwargs}
    return {
      'nnx.adapt': lambda: nnx.adapt(example.make(), *inputs, **options),
      'nnx.attach': lambda: nnx.as_adapted(nnx.attach(example.make(), *inputs, **options))[0],
    }
  function = functools.partial(glora_jax.adapt_function, example.apply, example.params)
  ways = {'adapt_function': lambda: function(*inputs, **options)}
  if example.linen:
    ways['adapt'] = lambda: glora_jax.adapt(example.linen, *inputs, **options)
  return ways


def all_rows(quick: bool) -> Iterator[Row]:
  """The patterns that the tests write themselves, and real models of other code bases."""
  import function_zoo
  import model_zoo
  import nnx_zoo
  from hand_count import found

  for name, make in model_zoo.EXAMPLES.items():
    example = make()
    spec = glora_jax.adapt(example.model, *example.inputs, **example.kwargs).spec
    names = {layer.name for layer in spec}
    missed = [row for row in example.rows if row not in names]
    yield Row(name, 'linen', 'adapt', len(spec), len(example.rows), missed)
  makers = {**nnx_zoo.EXAMPLES, **function_zoo.EXAMPLES}
  if not quick:
    from tests.peers import code_bases

    makers |= code_bases.EXAMPLES
  for name, make in makers.items():
    try:
      example = make()
    except ImportError as error:
      yield Row(name, '', str(error))
      continue
    for api, adapt in ways_of(example).items():
      of = functools.partial(Row, name, example.source or 'plain', api, counted=example.rows)
      try:
        adapted = adapt()
      except ValueError as error:
        yield of(0, missed=[str(error)])
      else:
        yield of(len(adapted.spec), missed=sorted(example.kernels.keys() - found(adapted)))


def main() -> None:
  """Counts and prints."""
  quick = make_parser(__doc__, 'only what needs no other package').parse_args().quick
  sys.path[:0] = [str(TESTS / folder) for folder in ('', 'method', 'nnx')]
  rows = list(all_rows(quick))
  print_table(
    dict.fromkeys(('model', 'code base', 'by', 'found', 'counted', 'missed'), ''),
    [(*row[:-1], ', '.join(row.missed) or None) for row in rows],
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
