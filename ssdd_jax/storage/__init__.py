"""Storage of a distilled set: precisions of arrays, images coded as one picture, and the bytes of the file."""
