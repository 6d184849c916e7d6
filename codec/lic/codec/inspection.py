"""What a file's bits are spent on."""

from lic.codec.container import LicFile, Tile
from lic.codec.entropy import Meter, SymbolCoder
from lic.codec.pipeline import Codec
from lic.codec.tiling import naming, places


def bits_by_part(codec: Codec, file: LicFile) -> dict[str, float]:
    """Return what the parts of the latents cost, in bits, over all tiles.

    Symbols are decoded, for what selects their tables hangs on those before; no picture is made.
    The parts are those of the model: z, s1, s2, s3 of HPCM, z and y with a hyperprior, else y.
    Together they take a little less than the streams: the coder's own states and rounding are of
    no part.

    Args:
        codec: of the model that the file was made with.
        file: a picture coded by a model, not a lossless one.

    Raises:
        BitstreamError: a stream is damaged.
        LimitError: a tile is larger than the model's memory should be asked to hold.
        NumericsError: this device gives other symbols than the encoder's.
    """
    codec.check_sizes(file.header)
    groups = codec.backend.steps.groups
    parts = dict.fromkeys(groups, 0.0)
    meters: list[Meter] = []

    for place, tile in zip(places(file.header), file.tiles, strict=True):

        def watch(reader: SymbolCoder, tile: Tile = tile) -> Meter:
            meters.append(codec.coding.meter(file.header, tile, reader))
            return meters[-1]

        with naming(place, file.header):
            codec.read_symbols(file.header, place, tile, watch)
        for group, bits in zip(groups, meters.pop().bits, strict=True):
            parts[group] += bits
    return parts
