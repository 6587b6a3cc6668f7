"""Shows a page on which to try a network.

python -m nfnets.demo --weights=runs/flowers

Top classes, what the network saw and what it looked at, its maps, and similar
images; on this machine alone.
"""

import argparse
from collections.abc import Sequence
import os
import sys
import threading

from nfnets.inference import classes, command_line, networks

_DESCRIPTION = """\
Shows a page in the browser on which to try a network: drop an image, and see
the most probable classes, what the network saw and where it looked.
"""
_EPILOG = """\
The page is there until Ctrl-C. It asks nothing of any other machine and writes
only to a temporary folder, which is removed at the end. The address goes to
standard output and everything else to standard error. The exit status is 0
after Ctrl-C or SIGTERM, 1 for a failure and 2 for a wrong command.
"""


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('demo', _DESCRIPTION, _EPILOG)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='names of the classes, as for python -m nfnets.classify',
  )
  parser.add_argument(
    '--embeddings',
    metavar='FILE',
    help='an .npz of python -m nfnets.embed, or a folder of some, in which to '
    'look for the most similar images',
  )
  parser.add_argument(
    '--images',
    default='',
    metavar='FOLDER',
    help='the folder that was given to python -m nfnets.embed',
  )
  parser.add_argument(
    '--port',
    type=_port,
    default=7860,
    metavar='N',
    help='where to listen (7860); 0 takes a free port',
  )
  parser.add_argument(
    '--host',
    default='127.0.0.1',
    metavar='ADDRESS',
    help='the address to listen on (127.0.0.1); others need --allow_others',
  )
  parser.add_argument(
    '--allow_others',
    action='store_true',
    help='with --host: whoever reaches that address over the network may use '
    'the page, without a password and unencrypted: send images to this '
    'machine, have it compute, and see the images of --images',
  )
  parser.add_argument(
    '--share',
    action='store_true',
    help="opens a tunnel from a server of Gradio's, whose client is fetched "
    'and run: whoever has the address may use the page, and what is sent goes '
    'through that server',
  )
  args = parser.parse_args(argv)
  return command_line.run(_demo, args)


def _port(text: str) -> int:
  if not text.isdecimal() or int(text) > 65535:
    raise argparse.ArgumentTypeError(f'{text} is no port')
  return int(text)


def _demo(args: argparse.Namespace) -> int:
  from nfnets.inference.demo import server

  if not server.is_loopback(args.host) and not args.allow_others:
    raise command_line.CommandError(
      f'--host={args.host} lets whoever reaches that address over the network '
      'use the page, without a password and unencrypted; --allow_others says '
      'that this is meant. To use it from another machine, an SSH tunnel is '
      'enough: ssh -L 7860:127.0.0.1:7860 MACHINE.',
      2,
    )
  with server.folder() as folder:
    command_line.check_images_can_be_read()
    command_line.check_installed('The page', ('gradio',), 'demo')
    network = command_line.open_network(args)
    if not network.num_classes:
      raise command_line.CommandError(
        f'{args.weights} has no last layer, so there are no classes to show.'
      )
    try:
      _serve(args, network, folder)
    except (OSError, ValueError) as error:
      raise command_line.CommandError(error) from error
  # The network may be computing, and Python's own end would crash then.
  os._exit(0)


def _serve(
  args: argparse.Namespace,
  network: networks.Network,
  folder: str,
) -> None:
  """Shows the page until somebody ends it."""
  from nfnets.inference.demo import answers as answers_lib
  from nfnets.inference.demo import neighbours, page, server

  index = None
  if args.embeddings:
    index = neighbours.load(args.embeddings, network.name)
  names = classes.names(network.num_classes, network.class_names, args.labels)
  answers = answers_lib.Answers(network, names)
  blocks = page.Page(
    answers,
    folder,
    title=f'{args.weights} · {network.num_classes} classes · '
    f'{network.image_size} × {network.image_size} pixels · {network.runtime}, '
    f'{network.precision}',
    examples=_examples(args.weights, os.path.join(folder, 'examples')),
    index=index,
    images=args.images,
  ).build()
  url, close = server.launch(
    blocks, folder, args.host, args.port, args.share, page.style()
  )
  threading.Thread(target=answers.warm_up, daemon=True).start()
  print(f'{url} (Ctrl-C ends it)', flush=True)
  try:
    threading.Event().wait()
  except KeyboardInterrupt:
    close()


def _examples(run: str, folder: str) -> Sequence[tuple[str, str]]:
  """Returns test images of a run; without them, the page has none."""
  try:
    from nfnets.inference.demo import examples

    return examples.of_run(run, folder)
  except (ModuleNotFoundError, OSError, ValueError) as error:
    print(f'There are no examples on the page: {error}', file=sys.stderr)
    return ()


if __name__ == '__main__':
  sys.exit(main())
