"""Judgement: a closed batch becomes one event, with a score by rules and sentences made of what was found.

`domain` has the facts, `rules` what risk means at this installation, `wording` the sentences, and `claims` judges those
of a language model.
"""
