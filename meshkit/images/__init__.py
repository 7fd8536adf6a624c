"""Untrusted images: what is sent is read, judged and made fit for work here and nowhere else.

`limits` says what is allowed and what is found; `data` reads base64 and data URLs. `checks` judges images: each service
has one pool of children, with one budget of memory and fair `turns` between tenants. `child` is such a child: it alone
decodes, by `decoding`, and makes images for work by `colours`. A crash in it, or a passed limit, is that image's error.

Where a service judges an image, at the door, the file stays as it came: its owner reads back what was stored. Where a
worker takes one in for work, it is made plain once, by the same child: sRGB, eight bits a channel. Addresses never pass
the door, so the door could not be the place for that. `notes` is what a made picture says of its making.
"""
