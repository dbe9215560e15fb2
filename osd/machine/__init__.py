"""Memory of this process and its device: arrays, copies between host and GPU, huge pages."""
