"""Single files of an archive: reading scans, writing labelled colour copies, inspecting them.

May import ``diffusion``.
"""
