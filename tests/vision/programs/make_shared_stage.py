"""Makes half of the shared stage of a job, and holds it until it is killed."""

import dataclasses
import sys
import time

from tiny_jobs import Job


class Slow(Job):
  """A job whose first stage has no end."""

  def make(self, name, field, **options):
    def run(context):
      print('half of it', flush=True)
      time.sleep(600)

    made = super().make(name, field, **options)
    return made if name != 'first' else dataclasses.replace(made, run=run)


Slow(*sys.argv[1:]).start()
