"""What ``train_colorization.py`` is built from: photo sources, the film model, losses, checkpoints.

May import ``diffusion``.
"""
