"""Benchmarks: what the mesh costs, side by side with what its users run today.

Every figure that the project states comes from here; `bench/README.md` holds the figures and their commands.
"""
