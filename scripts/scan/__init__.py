"""Scan the Dockerfile and the manifests by tools that are not part of the project: `make scan`."""
