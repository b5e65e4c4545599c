"""Every table, figure and theorem of the PLR paper (arXiv 2601.03153), measured on any data: `plr reproduce`.

One file per table or figure says which runs it needs and what it makes of them; `runner.py` trains each run once,
`report.py` writes what was measured. This module imports no PyTorch.
"""

from __future__ import annotations

__all__ = ["EXPERIMENTS"]

EXPERIMENTS = {
    "table1": "statistics of the data",
    "table2": "every backbone with every method",
    "table3": "PLR without its parts",
    "table4": "operations and latency",
    "figure2": "sensitivity to streams, steps, divergence weight and dropout",
    "figure3": "robustness to missing interactions",
    "figure4": "ceilings: the best step or stream of each user",
    "figure5": "what streams and steps attend to",
    "theory": "the theorems, measured on trained models",
}
"""What can be reproduced, in the paper's order; NAME is computed by `plr/reproduce/NAME.py`."""
