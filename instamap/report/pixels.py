"""Pictures of numbers as PNG data within a page: gray, or in colours for colour-blind people."""

import base64
import struct
import zlib

import torch
from torch import Tensor

# Viridis (van der Walt & Smith 2015), at equal distances.
VIRIDIS = (
    "440154",
    "472d7b",
    "3b528b",
    "2c728e",
    "21918c",
    "28ae80",
    "5ec962",
    "addc30",
    "fde725",
)
COMPRESSION = 6  # of zlib; more takes longer than it is worth
COLOUR_TYPE_RGB = 2
COLOUR_TYPE_GRAY = 0


def data_uri(
    values: Tensor, low: float, high: float, colours: tuple[str, ...] | None = None
) -> str:
    """A PNG of values "H W", the first row at the bottom, as an address with the data in it.

    low, high: values of the first and the last colour. colours: as RRGGBB; None means gray values.
    """
    span = max(high - low, 1e-30)
    share = ((values.double() - low) / span).clamp(0, 1)
    upright = share.flip(0)
    if colours is None:
        pixels = (255 * upright).round().byte()
        png = _png(pixels, COLOUR_TYPE_GRAY)
    else:
        png = _png(_coloured(upright, colours), COLOUR_TYPE_RGB)
    text = base64.b64encode(png).decode()
    return f"data:image/png;base64,{text}"


def _coloured(share: Tensor, colours: tuple[str, ...]) -> Tensor:
    """Bytes "H W 3" between the colours next to each share "H W"."""
    anchors = torch.tensor([list(bytes.fromhex(colour)) for colour in colours])
    place = share * (len(colours) - 1)
    before = place.long().clamp(max=len(colours) - 2)
    weight = (place - before)[..., None]
    mixed = torch.lerp(anchors[before].double(), anchors[before + 1].double(), weight)
    return mixed.round().byte()


def _png(pixels: Tensor, colour_type: int) -> bytes:
    """Bytes "H W" or "H W 3" as a PNG file."""
    height, width = pixels.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    lines = [b"\0" + row.numpy().tobytes() for row in pixels.contiguous()]
    packed = zlib.compress(b"".join(lines), COMPRESSION)
    chunks = [_chunk(b"IHDR", header), _chunk(b"IDAT", packed), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)
