"""Translate between JSON over HTTP and protobuf over gRPC, by tables that are compiled from descriptors.

A library that the gateway uses. It opens no socket, reads no configuration, imports no service and names no message of
one: what it knows of a contract it reads from the descriptors that it is given, once, at start.

`options` reads what the contracts say about their presentation, and `scalars` converts single values. `routes` finds
the method that answers a request. `codec` converts messages, and `decoding` holds what it finds on the
way; `requests` puts a request message together from path, query and body. `errors` renders what went wrong as the
documented bodies. `schemas` and `openapi` describe all of it.
"""
