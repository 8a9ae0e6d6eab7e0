"""Many photos: overlap of reading, drawing and writing; manifest and resume; settings; sheets.

May import ``diffusion``, ``archive`` and ``sets``.
"""
