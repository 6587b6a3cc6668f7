"""How signals propagate through networks, by depth (arXiv 2101.08692)."""

import argparse
import json

import jax
import jax.numpy as jnp

from nfnets import zoo
from nfnets.inference import command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the arguments of `run`."""
  parser.add_argument(
    '--models',
    required=True,
    type=lambda text: [command_line.model_name(n) for n in text.split(',')],
    metavar='NAME[,NAME]',
    help='models, by their names in nfnets.list_models()',
  )


def run(args: argparse.Namespace) -> int:
  """Measures the networks that the arguments name; returns the exit status."""
  for name in args.models:
    images = jax.random.normal(jax.random.key(0), (32, 32, 32, 3), jnp.float32)
    model = zoo.create_model(name, num_classes=0)
    params, state = model.init(jax.random.key(0), 32)
    outputs, _ = model.apply(params, state, None, images, is_training=False)
    variance = float(jnp.mean(jnp.var(outputs['features'][-1], (0, 1, 2))))
    print(json.dumps({'model': name, 'last_variance': variance}))
  return 0
