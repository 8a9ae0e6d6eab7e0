"""What ``train_colorization.py`` is built from: options, photo sources and their index, the film model, losses,
networks, checkpoints.

May import ``diffusion`` and ``loading``.
"""
