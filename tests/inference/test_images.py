"""Decoding image files."""

import io
import os
import struct
import zlib

import golden_lib
import numpy as np
from PIL import Image
import pytest

from nfnets.data import preprocess
from nfnets.errors import ImageError
from nfnets.inference import images

JPEG = (golden_lib.GOLDEN / 'image_210x150.jpg').read_bytes()
ORIENTATION = 0x112
GREY = np.linspace(0, 255, 40 * 60).astype(np.uint8).reshape(40, 60)
COLOURS = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)

# What is stored for an upright image, by EXIF orientation (its 0th row is the
# visual top for 1, 2; bottom for 3, 4; left for 5, 8; right for 6, 7).
STORED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: x.swapaxes(0, 1)[::-1],
  7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
  8: lambda x: x.swapaxes(0, 1)[:, ::-1],
}


@pytest.fixture
def read(tmp_path):
  """Returns a function that saves an image, reads the file and returns both."""

  def save_and_read(image, suffix, **kwargs):
    path = tmp_path / f'image{suffix}'
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(path, **kwargs)
    return images.read_image(str(path))

  return save_and_read


def write_png(path, width, height, bits, color_type, data):
  """Writes a PNG of a kind that Pillow does not write."""

  def chunk(kind, content):
    content = kind + content
    checksum = struct.pack('>I', zlib.crc32(content))
    return struct.pack('>I', len(content) - 4) + content + checksum

  header = struct.pack('>IIBBBBB', width, height, bits, color_type, 0, 0, 0)
  path.write_bytes(
    b'\x89PNG\r\n\x1a\n'
    + chunk(b'IHDR', header)
    + chunk(b'IDAT', zlib.compress(data))
    + chunk(b'IEND', b'')
  )


@pytest.mark.parametrize('orientation', STORED)
@pytest.mark.parametrize('suffix', ['.png', '.tiff', '.webp', '.jpg'])
def test_exif_orientation_is_applied(read, suffix, orientation):
  exif = Image.Exif()
  exif[ORIENTATION] = orientation
  smooth = COLOURS // 4 + 60
  stored = np.ascontiguousarray(STORED[orientation](smooth))
  options = {'lossless': True} if suffix == '.webp' else {}
  if suffix == '.jpg':
    options = {'quality': 100, 'subsampling': 0}
  image = read(stored, suffix, exif=exif, **options)
  if isinstance(image, bytes):
    image = np.asarray(Image.open(io.BytesIO(image)))
  difference = np.abs(np.int32(image) - smooth)
  assert difference.max() == 0 or (suffix == '.jpg' and difference.mean() < 2)


@pytest.mark.parametrize('entry', [(0x100, 2), (0x11A, 2), (0x8769, 4)])
def test_odd_exif_data_do_not_matter(read, entry):
  entries = [(ORIENTATION, 3, 1, b'\6\0\0\0'), (*entry, 4, b'abc\0')]
  entries = b''.join(struct.pack('<HHI4s', *e) for e in entries)
  exif = b'Exif\0\0II*\0' + struct.pack('<IH', 8, 2) + entries + bytes(4)
  assert read(COLOURS, '.jpg', exif=exif).shape == (60, 40, 3)


def test_plain_jpegs_get_the_published_decoder(tmp_path, read):
  path = tmp_path / 'a.jpg'
  path.write_bytes(JPEG)
  assert images.read_image(str(path)) == JPEG
  # The pixels that the note in `read_image` speaks of.
  size = (150, 210)
  published = preprocess.preprocess_eval(JPEG, size, 'resize_crop_1').numpy()
  of_pillow = np.asarray(Image.open(path))
  assert 3 <= np.abs(published - of_pillow).max() <= 6.5
  assert isinstance(read(GREY, '.jpg'), bytes)


def test_jpegs_that_lack_data_before_their_end_are_refused(tmp_path):
  path = tmp_path / 'image.jpg'
  half = JPEG[: len(JPEG) // 2]
  path.write_bytes(half + b'\xff\xd9')
  with pytest.raises(ImageError, match='its data end too early'):
    images.read_image(str(path))
  # Which have to be told from those whose last pixel is of the same grey.
  content = io.BytesIO()
  Image.new('RGB', (40, 60), (128, 128, 128)).save(content, 'JPEG')
  path.write_bytes(content.getvalue())
  assert images.read_image(str(path)) == content.getvalue()


def test_jpegs_that_tensorflow_warns_of_are_decoded_by_pillow():
  start = JPEG.index(b'JFIF\0') + 5
  odd = JPEG[:start] + b'\0' + JPEG[start + 1 :]
  assert images.is_plain(JPEG) and not images.is_plain(odd)
  expected = np.asarray(Image.open(io.BytesIO(JPEG)).convert('RGB'))
  np.testing.assert_array_equal(images.decode(io.BytesIO(odd)), expected)


def test_jpeg_without_its_end_is_decoded(tmp_path):
  path = tmp_path / 'a.jpg'
  path.write_bytes(JPEG[:-2])
  whole = np.asarray(Image.open(io.BytesIO(JPEG)))
  np.testing.assert_array_equal(images.read_image(str(path)), whole)


@pytest.mark.parametrize('suffix', ['.png', '.tif', '.pgm', '.jp2', 'B.tif'])
def test_16_bit_grey_is_scaled(read, suffix):
  grey = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
  image = grey
  if suffix == 'B.tif':  # Of the other endianness.
    image = Image.frombytes('I;16B', (60, 40), grey.astype('>u2').tobytes())
  image = read(image, suffix)
  assert image.shape == (40, 60, 3) and image.dtype == np.uint8
  np.testing.assert_allclose(image, np.stack([grey / 257] * 3, -1), atol=1)


@pytest.mark.parametrize('kind', [np.float32, np.int32])
def test_pixels_of_unknown_range_are_refused(read, kind):
  with pytest.raises(ImageError, match='32 bits per channel.*16 bits'):
    read(np.full((4, 4), 65536, kind), '.tif')


def test_16_bit_colour_and_alpha_are_scaled(tmp_path):
  values = np.linspace(0, 65535, 40 * 60).astype(np.uint16).reshape(40, 60)
  for color_type, channels in ((2, 3), (4, 2), (6, 4)):
    pixels = np.stack([values] * channels, -1)
    alpha = 1.0
    if channels in (2, 4):
      pixels[..., -1] = 32768
      alpha = 0.5
    rows = b''.join(b'\0' + row.tobytes() for row in pixels.astype('>u2'))
    path = tmp_path / f'{color_type}.png'
    write_png(path, 60, 40, 16, color_type, rows)
    expected = values / 257 * alpha + 255 * (1 - alpha)
    image = images.read_image(str(path))
    np.testing.assert_allclose(image, np.stack([expected] * 3, -1), atol=1.5)


def test_transparent_pixels_are_laid_on_white(read):
  alpha = np.linspace(0, 255, 40 * 60).astype(np.uint8).reshape(40, 60).T
  alpha = alpha.reshape(40, 60)[..., None]
  for colours in (COLOURS, GREY[..., None]):
    expected = (colours * (alpha / 255.0)) + 255 - alpha
    image = read(np.concatenate([colours, alpha], axis=-1), '.png')
    want = np.broadcast_to(expected, COLOURS.shape)
    np.testing.assert_allclose(image, want, atol=1)
  opaque = np.full_like(alpha, 255)
  image = read(np.concatenate([COLOURS, opaque], axis=-1), '.png')
  np.testing.assert_array_equal(image, COLOURS)


def test_cmyk_is_not_inverted(read):
  cmyk = np.stack([*np.moveaxis(COLOURS, -1, 0), GREY // 3], axis=-1)
  image = Image.frombytes('CMYK', (60, 40), cmyk.tobytes())
  ink, black = np.float64(cmyk[..., :3]), np.float64(cmyk[..., 3:])
  expected = (255 - ink) * (255 - black) / 255
  np.testing.assert_allclose(read(image, '.tif'), expected, atol=1)
  jpeg = read(image, '.jpg', quality=100, subsampling=0)
  assert np.abs(jpeg - expected).mean() < 3


def test_modes_of_fewer_colours_are_decoded(read):
  bits = GREY > 99
  expected = np.stack([np.where(bits, 255, 0)] * 3, -1)
  np.testing.assert_array_equal(read(bits, '.png'), expected)
  expected = np.stack([GREY] * 3, -1)
  np.testing.assert_array_equal(read(GREY, '.bmp'), expected)


@pytest.mark.parametrize('suffix', ['.gif', '.webp', '.png', '.tif'])
def test_first_frame_is_taken(read, suffix):
  frames = [Image.new('RGB', (8, 8), c) for c in ('red', 'lime', 'blue')]
  image = read(
    frames[0],
    suffix,
    save_all=True,
    append_images=frames[1:],
    **({'lossless': True} if suffix == '.webp' else {}),
  )
  np.testing.assert_array_equal(image, np.full((8, 8, 3), [255, 0, 0]))


def test_broken_files_are_refused(tmp_path):
  png = io.BytesIO()
  Image.fromarray(COLOURS).save(png, 'png')
  png = png.getvalue()
  for name, content, message in (
    ('empty.jpg', b'', 'an empty file'),
    ('text.jpg', b'hello', 'not an image that Pillow reads'),
    ('page.png', b'<html>404</html>', 'not an image that Pillow reads'),
    ('cut.jpg', JPEG[: len(JPEG) // 2], 'cannot be decoded: .*truncated'),
    ('cut.png', png[: len(png) // 2], 'cannot be decoded: .*truncated'),
    ('head.jpg', JPEG[:200], 'cannot be decoded|not an image'),
  ):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
      images.read_image(str(path))
    assert '\n' not in str(error.value) and '0x' not in str(error.value)


def test_errors_of_all_kinds_are_the_images(tmp_path, monkeypatch):
  path = tmp_path / 'a.jpg'
  path.write_bytes(JPEG)

  def fail(image):
    raise struct.error('unpack\nrequires 4 bytes')

  monkeypatch.setattr(Image.Image, 'load', fail)
  monkeypatch.setattr('PIL.JpegImagePlugin.JpegImageFile.load', fail)
  with pytest.raises(ImageError, match='unpack requires 4 bytes'):
    images.read_image(str(path))


def test_small_files_of_huge_images_are_refused(tmp_path):
  path = tmp_path / 'bomb.png'
  write_png(path, 40_000, 40_000, 1, 0, bytes(1000))
  message = '1600000000 pixels.* limit of 178956970'
  with pytest.raises(ImageError, match=message):
    images.read_image(str(path))


def test_what_is_no_file_is_refused_without_waiting(tmp_path):
  os.mkfifo(tmp_path / 'pipe.jpg')
  (tmp_path / 'loop.jpg').symlink_to('loop.jpg')
  (tmp_path / 'dangling.jpg').symlink_to('nothing.jpg')
  (tmp_path / 'folder.jpg').mkdir()
  for name, message in (
    ('pipe.jpg', 'not a file'),
    ('loop.jpg', 'symbolic links'),
    ('dangling.jpg', 'No such file'),
    ('none.jpg', 'No such file'),
    ('folder.jpg', 'no image in this folder'),
  ):
    with pytest.raises(ImageError, match=message):
      images.read_image(str(tmp_path / name))


def test_formats_that_are_not_read_say_what_to_do(monkeypatch):
  Image.init()
  monkeypatch.setattr(Image, 'ID', [x for x in Image.ID if x != 'HEIF'])
  heic = b'\0\0\0\x1cftypmif1\0\0\0\0' + bytes(99)
  svg = b'\xef\xbb\xbf\n<!-- by hand -->\n<svg width="9">'
  for content, message in (
    (heic, r'HEIC.*pip install "\.\[heic\]".*convert it to JPEG'),
    (svg, 'SVG.*convert it to PNG'),
    (b'<html><svg width="9"></svg></html>', 'not an image that Pillow reads'),
    (heic.replace(b'mif1', b'mp42'), 'not an image that Pillow reads'),
  ):
    with pytest.raises(ImageError, match=message):
      images.read(content)


def test_heic_is_read(read):
  pytest.importorskip('pillow_heif')
  smooth = COLOURS // 4 + 60
  exif = Image.Exif()
  exif[ORIENTATION] = 6  # libheif turns the frame by a record of its own.
  for kwargs in ({}, {'exif': exif.tobytes()}):
    image = read(smooth, '.heic', quality=-1, **kwargs)
    upright = smooth if not kwargs else smooth.swapaxes(0, 1)[:, ::-1]
    np.testing.assert_allclose(image, upright, atol=3)
  clear = np.dstack([smooth, np.full_like(GREY, 51)])
  expected = smooth * 0.2 + 255 * 0.8
  image = read(clear, '.heif', quality=-1)
  np.testing.assert_allclose(image, expected, atol=3)
  assert images.is_image_name('a.HEIC') and not images.why_unreadable('a.heic')


def test_transparent_colours_are_laid_on_white(read):
  indices = np.repeat(np.arange(4, dtype=np.uint8), 10).reshape(4, 10)
  image = Image.frombytes('P', (10, 4), indices.tobytes())
  image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
  red, green, blue, grey = [255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]
  white = [255] * 3
  for suffix, transparency, expected in (
    ('.png', None, [red, green, blue, grey]),
    ('.png', 2, [red, green, white, grey]),
    ('.gif', 2, [red, green, white, grey]),
    ('.png', bytes([255, 0, 51, 255]), [red, white, [204, 204, 255], grey]),
  ):
    options = {} if transparency is None else {'transparency': transparency}
    found = read(image, suffix, **options)[:, 0]
    np.testing.assert_array_equal(found, expected)
  rgb = image.convert('RGB')
  for keyed, colour in ((rgb, (0, 255, 0)), (rgb.convert('L'), 150)):
    pixels = read(keyed, '.png', transparency=colour)
    assert (pixels[1] == 255).all() and (pixels[[0, 3]] < 255).any(-1).all()


@pytest.mark.parametrize('channels', ['', '1', 'A', 'RGB', 'RGBA'])
def test_whatever_a_picture_comes_as_it_is_the_same(tmp_path, channels):
  parts = [COLOURS] if 'RGB' in channels else [GREY]
  parts += [np.ascontiguousarray(GREY[::-1])] if 'A' in channels else []
  pixels = np.dstack(parts) if channels else GREY
  exif = Image.Exif()
  exif[ORIENTATION] = 6
  path = tmp_path / 'a.png'
  image = Image.fromarray(pixels.squeeze())
  image.save(path)
  expected = images.read_image(str(path))
  assert expected.shape == (40, 60, 3)
  for same in (
    *(path, path.read_bytes(), Image.open(path), image, pixels),
    pixels.astype(np.uint16) * 257,
  ):
    np.testing.assert_array_equal(images.read(same), expected)
  image.save(path, exif=exif)
  for turned in (str(path), path.read_bytes(), Image.open(path)):
    assert images.read(turned).shape == (60, 40, 3)
