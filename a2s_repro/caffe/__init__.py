"""Nets, runs and random numbers shared with Caffe.

layers: their names and order. conversion: `.caffemodel` to weights and back. vgg16: the plain VGG-16 to start from.
deploy: the prototxt of a net. state: `.solverstate`. export: a run's files for Caffe. streams: Caffe's random numbers
in a training run.
"""
