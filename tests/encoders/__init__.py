"""Real encoders of gzip blobs, each run as the program that it is: oracles of the models.

`collection` knows where they come from, builds what has to be built into a cache directory, and gives
them as functions from content to blob.
"""
