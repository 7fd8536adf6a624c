"""Cameras: the folders below the root, whether their photos are taken, and how they are."""
