"""Memory of this process and its device: numpy and torch views of it, copies between host and GPU, huge pages."""
