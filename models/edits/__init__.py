"""The edits model: the garments model taught to change a picture by instructions, with FLUX Kontext's conditioning.

Owns the scenes and changes that it draws (`scenes`), how an instruction is worded (`wording`), the recipe that goes on
with the garments model's text encoders and transformer (`train`), the measurement (`evaluate`), and the weights with
their card. It calls no service and no service imports it: a worker knows only the folder `weights/` and the card file
`weights/atelier.json` in it.
"""
