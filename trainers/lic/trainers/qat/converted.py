"""Writing the int8 form of a trained model; `lic.codec.models.int8_files` says what is in it."""

import json
from pathlib import Path

from safetensors.torch import save

from lic.codec.models.int8_files import FORMAT, VERSION, Converted
from lic.trainers.files import write_whole, writing


def save_converted(path: Path, converted: Converted) -> None:
    """Write the int8 model to `path`.

    Raises:
        OutputError: it cannot be written.
    """
    tensors = {
        f"{name}.{field}": value
        for name, layer in converted.layers.items()
        for field, value in layer.tensors().items()
    }
    metadata = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": converted.architecture,
        "config": json.dumps(converted.config),
        "layers": json.dumps({name: layer.axis for name, layer in converted.layers.items()}),
    }
    whole = {k: v.contiguous() for k, v in {**converted.rest, **tensors}.items()}
    data = save(whole, metadata)
    with writing(path):
        write_whole(path, lambda file: file.write(data))
