"""A search of equal size for every system on validation rows, then the chosen settings with several seeds: `plr tune`.

`space.py` reads what is searched, `search.py` makes trials with Optuna, `parts.py` does them here or in processes of
their own, `report.py` writes; `tune.py` is the order of it. This module imports no PyTorch and no Optuna.
"""

from __future__ import annotations
