"""Captioned images: sources, captions, non-IID partition, packing to bytes."""
