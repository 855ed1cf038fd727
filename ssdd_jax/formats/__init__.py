"""Import and export of distilled sets: files of other systems, archives, image folders and data set hubs.

distilled = formats.read("downloads/krr_st")
formats.write(distilled, "exported", "png")
"""

from ssdd_jax.formats.hub import upload
from ssdd_jax.formats.reading import FORMS, locate, read
from ssdd_jax.formats.writing import WRITABLE, Summary, write

__all__ = ["FORMS", "WRITABLE", "Summary", "locate", "read", "upload", "write"]
