"""Publishing colour copies beside their scans: IIIF sites, publication sheets, layered files; IIIF as a source.

May import ``diffusion``, ``archive`` and ``batch``.
"""
