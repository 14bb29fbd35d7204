"""ONNX: one file with graph and weights, for onnxruntime and whatever else reads opset 21."""
