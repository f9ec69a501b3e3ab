"""The NPU kernel, and who compiles it."""
