"""Detection: what is on each photo, found by a task of type PHOTO_DETECTION.

A photo waits on disk until the tasks service takes it. The task bears the identifier of the photo, so that it is made
once however often that is tried; its findings are written once, in one transaction with what listeners are told.
Whatever is away, photos stay as they are until it is back.
"""
