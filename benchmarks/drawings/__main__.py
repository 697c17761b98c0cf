"""What is a structure worth on a real backbone and real pictures?

  pip install onnx matplotlib
  python -m benchmarks.drawings [tables|prepare|rates|train|seconds] [--quick]
                                [--packages FOLDER] [--results FOLDER] [--pictures FOLDER]

A ViT-S/14 (DINOv2's, tuned for saliency) learns clip art by topic, and emoji by sub-category, which
it is tested on as another hand drew them; see `pictures`. All methods start from the linear probe's
head and have at most the size of LoRA of rank 2 in every layer, full fine-tuning apart. `prepare`
gets four packages and writes pictures and weights to `runs/drawings/`. `rates` trains every method
at each rate on the classes for development, with one seed. `train` trains what has no result yet on
the other classes, first one seed of every method, then the second and the third: if six hours end,
what is missing is left out. `tables` prints and draws the results that are kept; `seconds` times
steps of all methods, and what comes before them, in turn on a quiet machine. `--quick`: one epoch
of three methods; nothing is kept. The last line is JSON.
"""

import pathlib

from benchmarks.drawings import backbone, pictures
from benchmarks.structures.study import Study, main
from glora_jax.training.recipe import Recipe


def prepare(folder: str) -> None:
  """Writes pictures and backbone; the packages lie in a folder, or are downloaded to it."""
  pictures.prepare(folder)
  backbone.prepare(folder)


STUDY = Study(
  name='drawings',
  results=str(pathlib.Path(__file__).parent / 'results'),
  load=backbone.load,
  logits=backbone.logits,
  draw=pictures.draw,
  development=('clip_art.development', 'emoji.development'),
  final=('clip_art', 'emoji'),
  budget=149_400,  # of LoRA of rank 2 in every layer
  fixed=('bitfit', 'lora:2', 'ssf'),
  rates={
    'bitfit': (1e-3, 3e-3, 1e-2),
    'lora:2': (1e-3, 3e-3, 1e-2),
    'ssf': (1e-3, 3e-3, 1e-2),
    'gradient': (1e-3, 3e-3, 1e-2),
    'finetuning': (3e-6, 1e-5, 3e-5, 1e-4),
  },
  head=Recipe(epochs=24, warmup_epochs=1, batch_size=38, learning_rate=3e-3),
  epochs=24,
  gradient_batch=38,
)

if __name__ == '__main__':
  main(STUDY, __doc__, prepare)
