"""List files, Caffe's ImageSegData stream, and one module per data set."""
