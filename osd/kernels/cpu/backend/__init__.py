"""The CPU back end as osd calls it: converts between tensors and the arguments of compiled loops."""
