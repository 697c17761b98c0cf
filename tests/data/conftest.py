"""What tests of data share."""

import pytest

from glora_jax.data.examples import Files


@pytest.fixture
def read(monkeypatch):
  """The images that are read, by the last two parts of their paths."""
  paths, image = [], Files.image

  def note(self, index, **draft):
    paths.append('/'.join(self.paths[index].split('/')[-2:]))
    return image(self, index, **draft)

  monkeypatch.setattr(Files, 'image', note)
  return paths
