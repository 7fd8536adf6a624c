"""Makes the HEIC fixtures: python make.py PORTRAIT FOLDER, with pillow-heif 1.8.1 and NumPy."""

import sys
from pathlib import Path

import numpy as np
import pillow_heif as h
from PIL import Image

portrait, out = Image.open(sys.argv[1]).convert("RGB"), Path(sys.argv[2])
h.register_heif_opener(thumbnails=True)
out.mkdir(parents=True, exist_ok=True)
portrait.save(out / "portrait.heic", quality=45)

# As a phone that was held upright: the sensor's picture lies on its side, irot and EXIF both say so.
lying = portrait.transpose(Image.Transpose.ROTATE_90)
exif = Image.Exif()
exif[0x0112] = 6
lying.save(out / "turned.heic", quality=45, exif=exif.tobytes())

deep = np.asarray(portrait).astype(np.uint16) * 257
file = h.from_bytes(mode="RGB;16", size=portrait.size, data=deep.tobytes())
file.save(out / "ten-bit.heic", quality=45)

# Two pictures, the second is the primary one; tiled as iPhones do it.
h.options.GRID_TILE_SIZE = 128
two = h.from_pillow(Image.new("RGB", (64, 48), "blue"))
two.add_from_pillow(portrait)
two.save(out / "album.heic", quality=45, primary_index=1)
h.options.GRID_TILE_SIZE = 0
half = portrait.copy()
half.putalpha(Image.linear_gradient("L").resize(portrait.size))
half = half.resize((110, 128))
half.save(out / "alpha.heic", quality=45)
