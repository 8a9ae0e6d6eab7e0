"""The pipeline for programs without PyTorch: its export as ONNX graphs, and what is copied beside them.

May import ``archive`` and ``diffusion``; what is copied imports nothing of the package.
"""
