"""Does a structure by one gradient beat the simple methods on real texts?

  pip install tokenizers matplotlib
  python -m benchmarks.words [tables|prepare|train|seconds] [--quick] [--packages FOLDER]
                             [--results FOLDER] [--pictures FOLDER]

A pretrained sentence encoder (all-MiniLM-L6-v2, 6 blocks, width 384) learns how people rated
sentences, by classes of equal size, from 2,000 of a task; see `texts`. Methods have the size of
LoRA of rank 1 in every layer, or the largest smaller one, and all start from the linear probe's
head. Learning rates were chosen on films and products. `tables` prints kept results of editorials
and tweets, and draws them. `prepare` gets two packages and writes tokens to `runs/words/`; `train`
trains what has no result yet, three seeds of each method, and with `--results` in an empty folder
everything; `seconds` times steps of all methods, and what comes before them, in turn on a quiet
machine. `--quick`: one epoch of three methods; nothing is kept. The last line is JSON.
"""

import functools
import pathlib

from benchmarks.structures.study import Study, main
from benchmarks.words import encoder, texts
from glora_jax.training.recipe import Recipe

STUDY = Study(
  name='words',
  results=str(pathlib.Path(__file__).parent / 'results'),
  load=functools.partial(encoder.load, texts.ENCODER, texts.CLASSES),
  logits=encoder.logits,
  draw=texts.draw,
  development=tuple(texts.DEVELOPMENT),
  final=tuple(texts.FINAL),
  budget=41_472,  # of LoRA of rank 1 in every layer
  fixed=('bitfit', 'lora:1', 'lora:2@attn', 'lora:1@mlp', 'hira:1', 'scale_shift_lora:1@attn'),
  rates={},
  # The best of 10, 30 and 100 epochs and four rates on the development tasks, and as good there as
  # the best of five logistic regressions.
  head=Recipe(epochs=10, warmup_epochs=1, batch_size=32, learning_rate=3e-3),
  epochs=3,
  gradient_batch=100,
  randoms=2,
)

if __name__ == '__main__':
  main(STUDY, __doc__, texts.prepare)
