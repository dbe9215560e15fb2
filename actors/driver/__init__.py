"""The process that Ray's driver runs in, which is started again when Ray dies."""
