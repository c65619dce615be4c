"""What tests/test_serving.py serves exports with: TensorFlow's C++ loader, and TF Serving's protocol on top of it."""
