"""The CPU back end as osd calls it: tensors and plain values in, arguments of compiled loops out."""
