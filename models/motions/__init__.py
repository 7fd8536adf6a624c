"""The motions model: a small LTX-architecture image-to-video pipeline made from nothing but drawn clips.

Owns the clips and their wordings, the recipe that trains its three networks (`train`), the ruler that measures them
(`evaluate`), and the weights with their card. It draws with the garments model's code and reuses none of its weights.
It calls no service and no service imports it: a worker knows only the folder `weights/` and the card file in it.
"""
