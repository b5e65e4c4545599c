"""What a call of an operator passes on its way in: checks, the choice of a backend, precision, PyTorch's dispatcher."""
