"""Losses, teachers, and one file a method: the cloud's student from many edges."""
