"""The science: network, noise, augmentation, losses, metrics, the stages, and the study files."""
