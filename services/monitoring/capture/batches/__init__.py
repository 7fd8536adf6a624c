"""Batches: photos of one camera that came one soon after the other, told apart by pauses and by a longest duration."""
