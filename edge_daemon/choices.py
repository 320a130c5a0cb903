"""The words to choose from, in the configuration, on the command line or by MQTT: each list once (leaf)."""

from __future__ import annotations

from typing import Literal

WantedVariant = Literal["auto", "0.5b", "2b"]
WantedDevice = Literal["auto", "cpu", "cuda", "mps"]
WantedPrecision = Literal["auto", "float32", "int8", "bfloat16", "float16"]
KvPrecision = Literal["auto", "float32", "float16"]
Engine = Literal["torch", "onnx"]
ExportFormat = Literal["moonfile", "onnx", "safetensors"]
ExportPrecision = Literal["float32", "float16", "int8"]
"""What matrices are stored in; vectors (biases, norms) are float32 always, embeddings float16 at the least."""

CaptionLength = Literal["short", "normal", "long"]
"""A model may lack one; it says so."""
LogLevel = Literal["debug", "info", "warning", "error"]
Protocol = Literal["auto", "5", "3.1.1"]
"""Of MQTT."""

Transport = Literal["tcp", "udp"]
"""Of RTSP."""
Decode = Literal["auto", "keyframes", "all"]
"""Which pictures of a video stream."""
CameraFormat = Literal["auto", "mjpeg", "yuyv422", "h264"]
"""What a USB camera is asked to send."""
