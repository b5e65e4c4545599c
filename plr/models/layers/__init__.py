"""The bricks of sequence encoders: attention, linear, dropout, the Transformer layer."""
