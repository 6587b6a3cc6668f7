"""Trains with JAXline's own launcher (docs/training.md)."""

import functools

from absl import app
from jaxline import platform

from experiments import trainer

if __name__ == '__main__':
  app.run(functools.partial(platform.main, trainer.Experiment))
