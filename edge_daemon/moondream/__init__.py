"""Moondream in plain PyTorch: inference only, float32 on the CPU. Knows nothing of the daemon."""
