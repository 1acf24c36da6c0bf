"""Kernels: an op is a folder with its plain-PyTorch reference and the faster implementations of it.

`reference.py` is plain PyTorch, which exported folders carry; `triton.py`, `cuda.py` and `cpu.py` are faster, and none
is needed; `__init__.py` registers them and holds the public function. `dispatch.py` chooses which one runs.
"""
