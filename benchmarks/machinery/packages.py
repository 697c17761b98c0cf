"""Files of public packages, by address and checksum."""

import pathlib
from typing import NamedTuple

import pooch


class Package(NamedTuple):
  """A file of a package index.

  Attributes:
    url: its address.
    sha256: checksum of the file that was looked at.
  """

  url: str
  sha256: str


def read_package(package: Package, folder: str) -> bytes:
  """A package's file, which is downloaded to a folder if it is not there.

  Raises:
    ValueError: the download is not the file that was looked at.
  """
  name = package.url.rsplit('/', 1)[-1]
  path = pooch.retrieve(package.url, f'sha256:{package.sha256}', fname=name, path=folder)
  return pathlib.Path(path).read_bytes()
