"""Runs: a workflow for each photo that was looked at, of a file that a setting names: the hot folder.

The row of a run is written with the findings of its photo; the workflow is made under the photo's identifier as key, so
that there is one however often that is tried. Its end and what it made are told on the photo.
"""
