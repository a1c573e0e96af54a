"""Recorded training runs, and how far ours is from them.

recordings: reading one. repeating: doing it again. blobs: what Caffe calls our maps. comparison: gates and the report.
units: which ReLU or maximum went the other way. recorder: writing a run of ours.
"""
