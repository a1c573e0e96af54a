"""Replays recorded training runs and measures the deviation from them.

recording: reads a recorded run. replay: repeats it. blobs: feature maps under Caffe's blob names. gates: tolerances and
the report. flips: ReLUs and maxima that decide differently. recorder: records a run of this package.
"""
