"""Colour profiles that no library makes."""

import struct


def cmyk_profile() -> bytes:
    """A minimal ICC output profile: a 2-point table from CMYK to L*a*b* by ink coverage."""
    corners = []
    for index in range(16):
        inks = [index >> shift & 1 for shift in (3, 2, 1, 0)]
        corners += [255 - min(255, 60 * sum(inks[:3]) + 255 * inks[3]), 128, 128]
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + matrix
    table += ramp * 4 + bytes(corners) + ramp * 3
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags, body = b"", b""
    for name, data in ((b"desc", text), (b"wtpt", white), (b"A2B0", table)):
        body += bytes(-len(body) % 4)
        tags += struct.pack(">4sII", name, 128 + 4 + 36 + len(body), len(data))
        body += data
    size = 128 + 4 + 36 + len(body)
    head = struct.pack(">II4s4s4s4s", size, 0, bytes([2, 16, 0, 0]), b"prtr", b"CMYK", b"Lab ")
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", 3) + tags + body
