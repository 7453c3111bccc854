"""Writing a model as graphs of operations that other runtimes compute: ONNX."""
