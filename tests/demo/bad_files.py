"""Files that people send and that are no ordinary image."""

import io
import struct
import zlib

import golden_lib
import numpy as np
from PIL import Image

JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()
_PIXELS = np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)


def png_header(width: int, height: int) -> bytes:
  """Returns a PNG of that size whose pixels are all alike, in few bytes."""

  def chunk(kind, content):
    checksum = struct.pack('>I', zlib.crc32(kind + content))
    return struct.pack('>I', len(content)) + kind + content + checksum

  header = struct.pack('>IIBBBBB', width, height, 1, 0, 0, 0, 0)
  row = b'\0' * (1 + (width + 7) // 8)
  packer = zlib.compressobj(9)
  data = b''.join(packer.compress(row) for _ in range(height)) + packer.flush()
  return (
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', data)
    + chunk(b'IEND', b'')
  )


def _saved(kind: str, mode: str = 'RGB', **settings) -> bytes:
  content = io.BytesIO()
  Image.fromarray(_PIXELS).convert(mode).save(content, kind, **settings)
  return content.getvalue()


def _frames(kind: str) -> bytes:
  others = [Image.fromarray(_PIXELS[::-1])]
  return _saved(kind, save_all=True, append_images=others)


# Name: content, and a part of what is said of it; None if it is answered.
FILES = {
  'text.png': (b'this is no image\n' * 20, 'no image in JPEG'),
  'program.png': (b'MZ\x90\0' + bytes(2000), 'no image in JPEG'),
  'nothing.jpg': (b'', 'empty'),
  'vector.svg': (
    b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    'an SVG drawing, which has no pixels: convert it to PNG',
  ),
  'postscript.png': (
    b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n',
    'no image in JPEG',
  ),
  'cut.jpg': (JPEG[: len(JPEG) // 2], 'truncated'),
  'cut.png': (_saved('PNG')[:200], 'cannot be decoded'),
  'large.png': (png_header(8000, 8000), '8,000 × 8,000 pixels'),
  'huge.png': (png_header(30_000, 30_000), 'too large'),
  'cmyk.jpg': (_saved('JPEG', 'CMYK'), None),
  'moving.gif': (_frames('GIF'), None),
  'moving.webp': (_frames('WEBP'), None),
}
