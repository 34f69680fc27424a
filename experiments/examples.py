"""What trained networks make of a few slices, to look at.

Letters in names: N slices, C channels, H and W rows and columns.
"""

import numpy as np
import torch

from fewscan.experiments.checkpoint import load_model
from fewscan.experiments.scoring import anomaly_score
from fewscan.experiments.spec import Target
from fewscan.storage.runs import RunFolder


@torch.no_grad()
def segmented(
    folder: RunFolder, target: Target, threshold: float, images_NCHW: np.ndarray
) -> np.ndarray:
    """uint8 labels_NHW from the kept model of a fine-tuning, on the CPU.

    Classes are the most probable ones; of a binary model 1 is what scores above the threshold that
    validation chose, compared in half precision as it was chosen. Raises `RunError`.
    """
    network = load_model(folder.model).float()
    probabilities_NKHW = network(torch.from_numpy(images_NCHW).float()).softmax(dim=1)
    if target == "multiclass":
        return probabilities_NKHW.argmax(dim=1).to(torch.uint8).numpy()
    scores_NHW = probabilities_NKHW[:, 1:].sum(dim=1).half().numpy()
    return (scores_NHW > np.float16(threshold)).view(np.uint8)


@torch.no_grad()
def anomalies(folder: RunFolder, images_NCHW: np.ndarray) -> np.ndarray:
    """float32 anomaly scores_NHW from the kept model of a pre-training. Raises `RunError`."""
    images = torch.from_numpy(images_NCHW).float()
    network = load_model(folder.model).float()
    return anomaly_score(images, network(images)).numpy()
