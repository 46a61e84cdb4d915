"""The study's published figures, to stand beside ours in a column of their own; never a result of this package.

Stegmüller et al., arXiv 2302.05195: k-NN on cells, F1 in percent, random 75/25 split, four runs.
"""

SOURCE = "Stegmüller et al., arXiv 2302.05195"

# set → encoder → (mean, sd) of weighted F1
WEIGHTED_F1 = {
    "herlev": {
        "ResNet50 ImageNet": (60.2, 3.2),
        "ResNet50 DINO": (61.7, 3.2),
        "ViT-S/16 ImageNet": (55.2, 2.0),
        "ViT-S/16 DINO": (62.6, 2.8),
    },
    "sipakmed": {
        "ResNet50 ImageNet": (92.6, 0.4),
        "ResNet50 DINO": (93.7, 0.7),
        "ViT-S/16 ImageNet": (89.7, 0.5),
        "ViT-S/16 DINO": (94.4, 0.3),
    },
}

_HERLEV = ("CIS", "LD", "MD", "SD", "NC", "NI", "NS", "positives", "negatives")
_SIPAKMED = ("D", "K", "M", "P", "SI", "positives", "negatives")

# set → encoder → class or side → F1
CLASS_F1 = {
    "herlev": {
        "ResNet50 ImageNet": dict(zip(_HERLEV, (55.0, 64.3, 48.6, 51.3, 53.8, 87.0, 89.6, 93.2, 80.1), strict=True)),
        "ResNet50 DINO": dict(zip(_HERLEV, (59.0, 66.2, 48.6, 53.0, 50.9, 88.8, 92.4, 92.3, 78.6), strict=True)),
        "ViT-S/16 ImageNet": dict(zip(_HERLEV, (55.1, 59.5, 38.6, 48.7, 49.2, 75.8, 83.2, 92.4, 76.8), strict=True)),
        "ViT-S/16 DINO": dict(zip(_HERLEV, (62.8, 66.8, 48.2, 53.5, 58.8, 83.4, 89.7, 93.1, 80.8), strict=True)),
    },
    "sipakmed": {
        "ResNet50 ImageNet": dict(zip(_SIPAKMED, (94.4, 85.6, 90.4, 95.9, 97.0, 95.9, 96.1), strict=True)),
        "ResNet50 DINO": dict(zip(_SIPAKMED, (93.5, 87.7, 91.6, 97.2, 98.7, 97.2, 97.3), strict=True)),
        "ViT-S/16 ImageNet": dict(zip(_SIPAKMED, (91.2, 82.1, 86.3, 94.9, 94.0, 95.1, 95.4), strict=True)),
        "ViT-S/16 DINO": dict(zip(_SIPAKMED, (94.9, 88.8, 91.8, 98.0, 98.7, 97.6, 97.6), strict=True)),
    },
}  # fmt: skip

_ENCODERS = ("ResNet50 ImageNet", "ResNet50 DINO", "ViT-S/16 ImageNet", "ViT-S/16 DINO")

# target → fitted on → encoder → sensitivity of in-house positives, percent; k-NN, its k not told
TRANSFER = {
    "cells": {
        "herlev": dict(zip(_ENCODERS, (93.7, 68.6, 92.5, 82.9), strict=True)),
        "sipakmed": dict(zip(_ENCODERS, (67.4, 84.0, 56.7, 80.7), strict=True)),
        "herlev + sipakmed": dict(zip(_ENCODERS, (68.1, 82.1, 57.4, 79.7), strict=True)),
    },
    "tiles": {
        "herlev": dict(zip(_ENCODERS, (62.0, 57.9, 80.7, 69.5), strict=True)),
        "sipakmed": dict(zip(_ENCODERS, (16.3, 25.1, 22.1, 63.6), strict=True)),
        "herlev + sipakmed": dict(zip(_ENCODERS, (17.1, 31.7, 21.2, 63.5), strict=True)),
    },
}

# C3P, from third parties' notes on the journal version (CBM 2024;169:107809), F1 of positives, cells → tiles.
C3P_SOURCE = "Stegmüller et al., CBM 2024;169:107809 (secondary)"

# method (None: no pasting) → what is reported of it, over encoders and training sets
C3P = {
    None: "0.0 for ImageNet, 18 to 41 for DINO",
    "paste": "65 to 83",
    "blend": "worse than paste",
    "poisson": "10.7 to 43.3 above no pasting",
}
C3P_PROBABILITY = "0.5 on negative canvases; 0 and 1 are both worse"
