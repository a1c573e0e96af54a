"""Data sets as list files, Caffe's ImageSegData stream, and the sets themselves: one file each."""
