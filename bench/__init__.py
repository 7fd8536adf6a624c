"""Benchmarks: what the mesh costs beside what its users run today.

Every figure that the project states comes from these modules; `bench/README.md` has the figures and their commands.
"""
