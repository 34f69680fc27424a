"""Ways of pre-training, a file each. Here is the list of them.

A scheme's settings are read where no torch is loaded, so its file imports torch inside functions.
"""

from fewscan.experiments.schemes.autoencode import Autoencode
from fewscan.experiments.schemes.contrast import Contrast
from fewscan.experiments.schemes.ddep import NoisePrediction
from fewscan.experiments.schemes.denoise import Denoise
from fewscan.experiments.schemes.genesis import Genesis
from fewscan.experiments.schemes.inpaint import Inpaint
from fewscan.experiments.schemes.mae import Mae
from fewscan.experiments.schemes.scheme import Scheme
from fewscan.experiments.schemes.synthetic import Synthetic

__all__ = [
    "SCHEMES",
    "Autoencode",
    "Contrast",
    "Denoise",
    "Genesis",
    "Inpaint",
    "Mae",
    "NoisePrediction",
    "Scheme",
    "Synthetic",
]

SCHEMES: dict[str, type[Scheme]] = {
    "denoise": Denoise,
    "ddep": NoisePrediction,
    "synthetic": Synthetic,
    "contrast": Contrast,
    "autoencode": Autoencode,
    "inpaint": Inpaint,
    "mae": Mae,
    "genesis": Genesis,
}
"""By the name that stands in a study file as `scheme: {kind: …}`."""
