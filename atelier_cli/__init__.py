"""The command `atelier`: runs a mesh on one machine, and talks to a mesh through its gateway.

Owns the data folder (`mesh.json`, `credentials.json`, logs), the supervisor and the embedded servers. Calls the
gateway's JSON API alone. Imports no service and nothing that only services need.
"""
