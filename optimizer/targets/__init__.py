"""Quantization rules of each target and features of the CPU."""
