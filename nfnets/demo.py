"""Shows a page in the browser on which to try a network: drop an image, and see
the most probable classes, what the network saw and where it looked.

python -m nfnets.demo --weights=runs/flowers

The page is there until Ctrl-C. It asks nothing of any other machine and writes
only to a temporary folder, which is removed at the end. The address goes to
standard output and everything else to standard error. The exit status is 0
after Ctrl-C or SIGTERM, 1 for a failure and 2 for a wrong command.
"""

import os
import sys
import threading
import time

from nfnets.errors import UserError
from nfnets.inference import classes, command_line


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = command_line.make_parser('demo', __doc__)
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
    type=command_line.whole_number(0, 65535),
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
  from nfnets.inference.demo import server

  if not server.is_loopback(args.host) and not args.allow_others:
    raise UserError(
      f'--host={args.host} lets whoever reaches that address over the network '
      'use the page, without a password and unencrypted; --allow_others says '
      'that this is meant. To use it from another machine, an SSH tunnel is '
      'enough: ssh -L 7860:127.0.0.1:7860 MACHINE.',
      2,
    )
  with server.folder() as folder:
    command_line.check_images_can_be_read()
    command_line.check_installed('The page', ('gradio',), 'demo')
    from nfnets.inference.demo import answers as answers_lib
    from nfnets.inference.demo import neighbours, page, pictures

    network = command_line.open_network(args)
    if not network.num_classes:
      raise UserError(
        f'{args.weights} has no last layer, so there are no classes to show.'
      )
    index = None
    if args.embeddings:
      index = neighbours.load(args.embeddings, network.name)
    names = classes.names(network.num_classes, network.class_names, args.labels)
    answers = answers_lib.Answers(network, names)
    examples = []
    try:
      examples = pictures.examples(args.weights, f'{folder}/examples')
    except (ModuleNotFoundError, OSError, ValueError) as error:
      print(f'There are no examples on the page: {error}', file=sys.stderr)
    blocks = page.Page(
      answers,
      title=f'{args.weights} · {network.num_classes} classes · '
      f'{network.image_size} × {network.image_size} pixels · '
      f'{network.runtime}, {network.precision}',
      examples=examples,
      index=index,
      images=args.images,
    ).blocks
    url, close = server.launch(
      blocks, folder, args.host, args.port, args.share, page.style()
    )
    try:
      threading.Thread(target=answers.warm_up, daemon=True).start()
      print(f'{url} (Ctrl-C ends it)', flush=True)
      # A signal between Python's last check and a wait without an end would
      # not end that wait.
      while True:
        time.sleep(0.5)
    except KeyboardInterrupt:
      close()
  # The network may be computing, and Python's own end would crash then.
  os._exit(0)


if __name__ == '__main__':
  sys.exit(main())
