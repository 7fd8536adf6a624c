"""The garments model: a small FLUX-architecture pipeline made from nothing but drawings, on two CPU cores.

Owns the catalogue of what it draws and holds out, the drawings and their prompts, the recipe that trains the four
networks (`train`), the ruler that measures them (`evaluate`), and the weights with their card. It calls no service
and no service imports it: a worker knows only the folder `weights/` and the card file `weights/atelier.json` in it.
"""
