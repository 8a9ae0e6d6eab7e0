"""How good the colours are: metrics, the variational bound, calibration, the report.

May import ``diffusion``, ``training`` and, for sheets and hashes, ``archive`` and ``batch``.
"""
