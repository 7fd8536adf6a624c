"""The default of `origin_instance`, which says where a request comes from."""

import socket


def default_origin() -> str:
    """Return the name of this machine."""
    return socket.gethostname()[:255] or "atelier-cli"
