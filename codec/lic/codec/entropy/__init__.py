"""Symbols <-> bytes: frozen integer tables and an interleaved rANS coder. No torch, no floats."""

from lic.codec.entropy.context_coder import (
    ContextMeter,
    ContextReader,
    ContextWriter,
    context_symbols,
)
from lic.codec.entropy.contexts import Contexts
from lic.codec.entropy.meter import Meter
from lic.codec.entropy.rans import KernelName, Reader, SymbolCoder, Writer, kernel_name
from lic.codec.entropy.sets import cheapest_set
from lic.codec.entropy.tables import PRECISION, Tables, build_tables, pmf_to_quantized_cdf

__all__ = [
    "PRECISION",
    "ContextMeter",
    "ContextReader",
    "ContextWriter",
    "Contexts",
    "KernelName",
    "Meter",
    "Reader",
    "SymbolCoder",
    "Tables",
    "Writer",
    "build_tables",
    "cheapest_set",
    "context_symbols",
    "kernel_name",
    "pmf_to_quantized_cdf",
]
