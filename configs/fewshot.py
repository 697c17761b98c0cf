"""Few-shot fine-grained classification: 1 to 16 images per class, augmented nearly as in the paper.

  python -m glora_jax.main --config configs/fewshot.py:all
  python -m glora_jax.main --config configs/fewshot.py:food101,shots=4,seed=1
  python -m glora_jax.main --config configs/fewshot.py:oxford_pets,source=lists,root=/data/few-shot
  python -m glora_jax.main --config configs/fewshot.py:oxford_pets,tiny=True

Random crops are cut from the stored square images, while the paper crops the original files. So
small crops have fewer pixels, and the margins of pictures are never used.

The backbone is a ViT-B/16 pretrained on ImageNet-21k. Data sets: food101, stanford_cars,
oxford_flowers102, fgvc_aircraft (lists only), oxford_pets. `all` runs those that are ready with 1,
2, 4, 8 and 16 shots and seed 0; `shots=4` runs only that many, `seed=all` the seeds 0, 1 and 2. A
single data set accepts `shots=all` and `seed=all` as well; its default is 16 shots. A file of
budgets and learning rates, `settings=FILE.json`, names tasks as `food101/4/0`, or `food101` for all
of it.

Not run so far, and its time is unknown: it needs the in21k weights, the data sets and an
accelerator. Published for GLoRA (arXiv 2306.07967), accuracy in % with 1, 4 and 16 shots:

  food101 36.0 65.1 75.9    oxford_flowers102 88.7 99.1 99.6    oxford_pets 72.6 89.1 91.4
  stanford_cars 7.8 30.8 74.3    fgvc_aircraft 8.7 24.0 54.1
"""

from glora_jax.vision.runs.config import default_config, parse_arguments, shrink, with_settings

ARGUMENTS = {
  'source': str,
  'root': str,
  'rank': 8,
  'shots': str,
  'seed': str,
  'settings': str,
  'tiny': False,
}


def get_config(arguments='oxford_flowers102'):
  """The config; `arguments` is a data set, or 'all', and any of `ARGUMENTS`."""
  task, given = parse_arguments(arguments, ARGUMENTS)
  task = task or 'oxford_flowers102'
  shots = given['shots'] or ('all' if task == 'all' else 16)
  seed = given['seed'] or 0
  config = default_config()
  config.task = f'fewshot/{task}/{shots}/{seed}'
  config.seed = 42
  config.protocol = 'honest'
  config.structure = 'search'
  config.data.update(
    source=given['source'],
    root=given['root'],
    cache='~/.cache/glora_jax/images',
    resize='crop',
  )
  config.augment.update(crop=0.08, flip=True, rand_augment=9.0, color_jitter=0.4, erasing=0.25)
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  # The official recipe, which is also the default.
  config.training.update(epochs=500, warmup=0.02, batch_size=64, learning_rate=1e-4)
  config.search.update(population=50, generations=20)
  config.finetune.epochs = 100
  config = with_settings(config, given['settings'])
  return shrink(config) if given['tiny'] else config
