"""What the mesh is doing: workers, health, metrics. No release serves it yet: the package holds its place."""
