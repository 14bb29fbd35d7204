"""Compiled CPU loops."""
