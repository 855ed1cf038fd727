"""Measurements and studies that are run by hand."""
