"""Training with int8 arithmetic simulated, and the int8 checkpoint that comes of it."""

from lic.codec.models.int8_files import Converted, QuantizedLayer, load_converted
from lic.trainers.qat.converted import save_converted
from lic.trainers.qat.simulation import Qat, convert, prepare_qat

__all__ = [
    "Converted",
    "Qat",
    "QuantizedLayer",
    "convert",
    "load_converted",
    "prepare_qat",
    "save_converted",
]
