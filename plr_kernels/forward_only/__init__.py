"""What a forward pass of a Transformer without gradients is made of between its products of matrices."""
