"""A model of a service of 1 to 1,000 engines, by discrete events, with costs measured on this machine."""
