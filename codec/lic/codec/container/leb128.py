"""Numbers of one to five bytes: seven bits a byte, the lowest first."""


def pack_leb128(value: int) -> bytes:
    """Return the shortest form of a number."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_leb128(data: bytes, position: int) -> tuple[int | None, int]:
    """Return a number below 2**35 and the position after it; None where that is no shortest form.

    The position is then that of the byte before which there is none.
    """
    value = 0
    for shift in range(0, 35, 7):
        if position >= len(data):
            break
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if shift and not byte:
                break
            return value, position
    return None, position
