"""Qualcomm's Hexagon HTP, through onnxruntime-qnn: it compiles on x86 what a phone would run."""

from lic.export.targets.compilers.toolkit import Toolkit

QNN = Toolkit(
    name="qnn",
    package="onnxruntime-qnn",
    configurations={"hexagon-htp": ("fp16", "a8w8", "a16w8")},
)
