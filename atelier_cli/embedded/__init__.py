"""NATS, PostgreSQL and an S3 store from wheels, as child processes on loopback.

Owns how each server is configured, started, probed and stopped; knows no service of the mesh. The same modules carry
`atelier up` and the tests, so what is tested is what a newcomer runs. Each server keeps everything under a folder that
it is given, listens on 127.0.0.1 alone and takes a random password.
"""
