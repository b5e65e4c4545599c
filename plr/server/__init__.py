"""A trained run over HTTP: `plr serve`.

The supervisor holds the listening socket and imports no PyTorch. A process that it starts loads the run, checks it and
forks the workers, which share what was loaded; another run is another such process, beside the former one.
"""
