"""Few-shot fine-grained classification: 1 to 16 images a class, ViT-B/16 pretrained on ImageNet-21k, augmented as in the paper.

  python -m glora_jax.main --config configs/fewshot.py:food101,shots=4,seed=1
  python -m glora_jax.main --config configs/fewshot.py:fgvc_aircraft,shots=16,source=lists,root=/data/few-shot

Data sets: food101, stanford_cars, oxford_flowers102, fgvc_aircraft (lists only), oxford_pets.
"""

from glora_jax.config import default_config, parse_arguments


def get_config(arguments='oxford_flowers102'):
  task, given = parse_arguments(arguments, {'source': None, 'root': None, 'rank': 8, 'shots': 16, 'seed': 0})
  config = default_config()
  config.task = f'fewshot/{task}/{given["shots"]}/{given["seed"]}'
  config.data.update(source=given['source'], root=given['root'], cache='~/.cache/glora_jax/images', resize='crop')
  config.augment.update(crop=True, flip=True, rand_augment=True, color_jitter=0.4, erasing=0.25)
  config.model.weights = 'in21k-B/16'
  config.space.ranks = (given['rank'],)
  return config
