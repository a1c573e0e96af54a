"""Exchange of nets, runs and random numbers with Caffe.

layers: layer names and their order. conversion: `.caffemodel` to weights and back. vgg16: init weights from the plain
VGG-16. deploy: a net's `deploy.prototxt`. state: `.solverstate`. export: a run's files for Caffe. streams: Caffe's
random numbers for a training run.
"""
