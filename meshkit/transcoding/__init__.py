"""Between JSON over HTTP and protobuf over gRPC, compiled from descriptors.

A library of its own: it opens no socket and reads no configuration. `routes` says which method answers a request,
`codec` turns JSON into its request message and its response message into JSON, `errors` turns what went wrong into the
documented bodies, `openapi` describes all of it, and `options` reads what the contracts say about their presentation.
"""
