"""Moondream, inference only, by PyTorch or ONNX Runtime. Knows nothing of the daemon."""
