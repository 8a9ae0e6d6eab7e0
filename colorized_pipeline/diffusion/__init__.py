"""The model itself: what a photo is, the pipeline, colour spaces, hints. This folder travels to the Hub as it is.

Imports nothing else of this package.
"""
