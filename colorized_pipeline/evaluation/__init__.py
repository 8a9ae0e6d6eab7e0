"""How good the colours are: metrics, the variational bound, calibration, the report.

May import ``diffusion`` and ``training``.
"""
