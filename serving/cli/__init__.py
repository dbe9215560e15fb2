"""The `osd` command line."""
