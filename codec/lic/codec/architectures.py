"""Facts of the architectures that hold without their code, and without torch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What must be known of an architecture without its code.

    Attributes:
        decoding: tensors whose names start so decide what a decoder computes.
        tiled: large pictures are coded tile by tile. Networks that only see symbols need none: in
            strips they give the same as in one piece.
    """

    decoding: tuple[str, ...]
    tiled: bool


ARCHITECTURES: dict[str, Architecture] = {
    "bmshj2018-factorized": Architecture(
        decoding=("g_s.", "entropy_bottleneck.quantiles"), tiled=False
    ),
    "bmshj2018-hyperprior": Architecture(
        decoding=(
            "g_s.",
            "h_s.",
            "entropy_bottleneck.quantiles",
            "gaussian_conditional.scale_table",
        ),
        tiled=True,
    ),
    "hpcm": Architecture(
        decoding=(
            "g_s.",
            "h_s.",
            "means_hyper",
            "adaptive_params_list.",
            "y_spatial_prior_",
            "attn_",
            "context_net.",
        ),
        tiled=True,
    ),
}
