"""All of these tests are left out where a package of the `peers` extra is missing."""

from importlib.util import find_spec

PACKAGES = ['equinox', 'haiku', 'huggingface_hub', 'keras', 'peft', 'qwix', 'timm', 'torchax']
PACKAGES += ['torchvision', 'transformers']
collect_ignore_glob = [] if all(map(find_spec, PACKAGES)) else ['*.py']
