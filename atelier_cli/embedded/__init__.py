"""NATS, PostgreSQL and an S3 store from wheels, as child processes on loopback.

Owns how each server is configured, started, probed and stopped; knows no service of the mesh. `atelier up` and the
tests use the same modules, so the tests cover what a newcomer runs. Each server keeps everything in the folder that it
is given, listens on 127.0.0.1 alone and takes a random password; what it opens beside that takes its own certificate.
"""
