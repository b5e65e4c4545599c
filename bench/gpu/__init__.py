"""Checks and times the fused operators on the GPU at hand; docs/benchmarks.md explains the figures.

    python -m bench.gpu

First the parity tests run on the chip, each operator's in a process of its own; an operator whose tests fail is not
timed. Then every operator and its peers take turns, forward and backward, timed by CUDA events behind a cleared cache,
and once more as CUDA graphs, in which the host has no part. What is found goes to bench/results/gpu-CHIP-DATE.json
after every case, and as a table and a plot beside it at the end.
"""
