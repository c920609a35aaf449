"""Denoising that can be cut at any step and go on elsewhere, bit for bit."""
