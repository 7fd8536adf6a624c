"""How fast the mesh works and what its machines bear: snapshots of the last hour."""
