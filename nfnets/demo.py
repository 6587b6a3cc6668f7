"""Serves a web page to try a network: classes and attention map of an image.

python -m nfnets.demo --weights=runs/flowers

The page runs until Ctrl-C. It contacts no other machine and writes only to a
temporary folder, which is removed at the end. The address goes to standard
output, messages to standard error. The exit status is 0 after Ctrl-C or
SIGTERM, 1 for a failure and 2 for a wrong command.
"""

import os
import sys
import threading
import time

from nfnets.errors import UserError
from nfnets.inference import classes, command_line


@command_line.command
def main(argv: list[str] | None = None) -> int:
  """Run the command; return its exit status."""
  parser = command_line.make_parser('demo', __doc__)
  command_line.add_runtime_arguments(parser)
  parser.add_argument(
    '--labels',
    metavar='FILE',
    help='class names, as in python -m nfnets.classify',
  )
  parser.add_argument(
    '--embeddings',
    metavar='FILE',
    help='search for similar images in an .npz of python -m nfnets.embed, or '
    'in a folder of such files',
  )
  parser.add_argument(
    '--images',
    default='',
    metavar='FOLDER',
    help='the image folder that python -m nfnets.embed read',
  )
  parser.add_argument(
    '--port',
    type=command_line.whole_number(0, 65535),
    default=7860,
    metavar='N',
    help='port (7860); 0: any free port',
  )
  parser.add_argument(
    '--host',
    default='127.0.0.1',
    metavar='ADDRESS',
    help='address (127.0.0.1); other addresses need --allow_others',
  )
  parser.add_argument(
    '--allow_others',
    action='store_true',
    help='with --host: anyone who reaches the address over the network can use '
    'the page, without password or encryption: send images, use the processor '
    'and see the images of --images',
  )
  parser.add_argument(
    '--share',
    action='store_true',
    help="open a tunnel from a Gradio server; downloads and runs Gradio's "
    'client. Anyone with the address can use the page, and all data pass '
    'through that server',
  )
  args = parser.parse_args(argv)
  from nfnets.inference.demo import server

  if not server.is_loopback(args.host) and not args.allow_others:
    raise UserError(
      f'--host={args.host} lets anyone who reaches the address over the '
      'network use the page, without password or encryption. Confirm with '
      '--allow_others, or use an SSH tunnel: '
      'ssh -L 7860:127.0.0.1:7860 MACHINE.',
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
        f'{args.weights} has no last layer and no classes to show.'
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
      print(f'The page has no examples: {error}', file=sys.stderr)
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
      # Short sleeps, because a signal just before an endless wait would not end
      # it.
      while True:
        time.sleep(0.5)
    except KeyboardInterrupt:
      close()
  # Python's normal exit may crash while the network computes.
  os._exit(0)


if __name__ == '__main__':
  sys.exit(main())
