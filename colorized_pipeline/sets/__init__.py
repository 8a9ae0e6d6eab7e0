"""What photos of one box have in common: colours that are known, and photos that show the same.

May import ``diffusion`` and ``archive``.
"""
